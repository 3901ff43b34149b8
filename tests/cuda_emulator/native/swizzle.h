// How shared memory is swizzled for tensor cores: 16-byte chunks change places within `span` bytes.
#pragma once

#include <cstdint>

namespace emulator {

// `span` is 128, 64, 32, or 16 for none. Which chunks change places is in the address bits from 7.
inline uint32_t swizzle(uint32_t address, unsigned span) {
  return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

}  // namespace emulator
