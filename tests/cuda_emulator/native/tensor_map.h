// What a CUtensorMap holds here: the driver fills it, bulk tensor copies read it.
#pragma once

#include <cstdint>

namespace emulator {

struct TensorMap {
  unsigned char* address;
  uint64_t strides[4];  // bytes between elements of dimensions 1 to 4
  uint64_t extents[5];
  uint16_t box[5];
  uint8_t element_strides[5];
  uint8_t rank;
  uint8_t element_size;
  uint8_t swizzle;  // 0: none, 1: 32 bytes, 2: 64, 3: 128
  uint8_t fill_nan;
};

static_assert(sizeof(TensorMap) <= 128);

}  // namespace emulator
