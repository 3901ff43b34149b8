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
  unsigned char* to;
  unsigned char* shared;  // where the block's shared memory begins

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
    const uint32_t start = static_cast<uint32_t>(to - shared) + kSharedWindow;
    uint32_t bytes = 0;
    std::array<unsigned, kMaxRank> index{};
    for (bool more = true; more;) {
      unsigned char* target = shared + (swizzle(start + bytes, span) - kSharedWindow);
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

// The block of the cluster that an address in shared memory belongs to: where its memory begins.
unsigned char* shared_of(unsigned char* pointer) {
  const Block& block = *current->block;
  unsigned char* found = block.shared;
  for (unsigned rank = 0; rank < current->launch->cluster.count(); ++rank) {
    unsigned char* const shared = block.cluster_shared[rank];
    if (shared <= pointer && (found > pointer || shared > found)) found = shared;
  }
  return found;
}

void need_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("a bulk copy is misaligned");
}

}  // namespace

void bulk_load(unsigned char* to, const unsigned char* from, uint32_t bytes,
               unsigned char* mbarrier) {
  need_alignment(to, 16);
  need_alignment(from, 16);
  if (bytes % 16 != 0) fail("a bulk copy's size is no multiple of 16 bytes");
  transfer([=] {
    std::memcpy(to, from, bytes);
    MBarrier::at(mbarrier).complete(bytes);
  });
}

void bulk_tensor_load(unsigned char* to, const void* map, const int32_t* coordinates, size_t rank,
                      unsigned char* mbarrier) {
  TensorLoad load{};
  std::memcpy(&load.map, map, sizeof load.map);
  if (load.map.rank != rank) fail("a tensor map has another number of dimensions");
  need_alignment(to, 128);
  load.to = to;
  load.shared = shared_of(to);
  std::memcpy(load.coordinates.data(), coordinates, rank * sizeof *coordinates);
  transfer([=] { MBarrier::at(mbarrier).complete(load.run()); });
}

}  // namespace emulator
