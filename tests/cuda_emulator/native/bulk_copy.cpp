#include "bulk_copy.h"

#include <array>
#include <cstring>

#include "execution.h"
#include "mbarrier.h"
#include "memory.h"
#include "swizzle.h"
#include "tensor_map.h"

namespace emulator {
namespace {

constexpr unsigned kMaxRank = 5;

struct TensorLoad {
  TensorMap map;
  std::array<int32_t, kMaxRank> coordinates;
  uint32_t to;            // address in the block's own shared memory
  unsigned char* shared;  // which begins here

  // Where the element of the box is in the tensor, or none if it is outside.
  const unsigned char* source(const std::array<unsigned, kMaxRank>& index) const {
    const unsigned char* element = map.address;
    for (unsigned i = 0; i < map.rank; ++i) {
      const int64_t at = coordinates[i] + int64_t{index[i]} * map.element_strides[i];
      if (at < 0 || at >= static_cast<int64_t>(map.extents[i])) return nullptr;
      element += at * static_cast<int64_t>(i == 0 ? map.element_size : map.strides[i - 1]);
    }
    return element;
  }

  uint32_t run() const {
    const unsigned span = 16u << map.swizzle;
    uint32_t bytes = 0;
    std::array<unsigned, kMaxRank> index{};
    for (bool more = true; more;) {
      unsigned char* target = shared + (swizzle(to + bytes, span) - kSharedWindow);
      if (const unsigned char* element = source(index); element != nullptr) {
        std::memcpy(target, element, map.element_size);
      } else {
        std::memset(target, map.fill_nan ? kPoison : 0, map.element_size);
      }
      bytes += map.element_size;
      more = false;
      for (unsigned i = 0; i < map.rank && !more; ++i) {
        more = ++index[i] < map.box[i];
        if (!more) index[i] = 0;
      }
    }
    return bytes;
  }
};

void need_multiple(uint64_t value, unsigned of) {
  if (value % of != 0) fail("a bulk copy is misaligned");
}

}  // namespace

void bulk_load(uint32_t to, const unsigned char* from, uint32_t bytes, uint32_t mbarrier) {
  need_multiple(to, 16);
  need_multiple(reinterpret_cast<uintptr_t>(from), 16);
  need_multiple(bytes, 16);
  transfer([=, target = shared_pointer(to), counter = shared_pointer(mbarrier)] {
    std::memcpy(target, from, bytes);
    MBarrier::at(counter).complete(bytes);
  });
}

void bulk_tensor_load(uint32_t to, const void* map, const int32_t* coordinates, size_t rank,
                      uint32_t mbarrier) {
  TensorLoad load{};
  std::memcpy(&load.map, map, sizeof load.map);
  if (load.map.rank != rank) fail("a tensor map has another number of dimensions");
  need_multiple(to, 128);
  load.to = own_address(to);
  load.shared = shared_pointer(to) - (load.to - kSharedWindow);
  std::memcpy(load.coordinates.data(), coordinates, rank * sizeof *coordinates);
  transfer([=, counter = shared_pointer(mbarrier)] {
    MBarrier::at(counter).complete(load.run());
  });
}

}  // namespace emulator
