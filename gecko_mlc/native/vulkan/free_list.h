// Which parts of a range of addresses are taken.

#ifndef GECKO_MLC_NATIVE_VULKAN_FREE_LIST_H_
#define GECKO_MLC_NATIVE_VULKAN_FREE_LIST_H_

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <unordered_map>

namespace gecko_mlc::vulkan {

// Neighbours that are both free are one range, so that a range is whole again once all of it was
// freed. Tensors are few and live long: the smallest range that fits is found by looking at all.
class FreeList {
 public:
  FreeList(uint64_t start, uint64_t size) { free_.emplace(start, size); }

  // An address, a multiple of ``alignment``, with ``size`` > 0 bytes from there; none if none fits.
  std::optional<uint64_t> Allocate(uint64_t size, uint64_t alignment) {
    auto best = free_.end();
    for (auto range = free_.begin(); range != free_.end(); ++range) {
      uint64_t skipped = Aligned(range->first, alignment) - range->first;
      if (range->second < skipped || range->second - skipped < size) continue;
      if (best == free_.end() || range->second < best->second) best = range;
    }
    if (best == free_.end()) return std::nullopt;
    auto [start, length] = *best;
    uint64_t address = Aligned(start, alignment);
    free_.erase(best);
    if (address > start) free_.emplace(start, address - start);
    uint64_t end = start + length;
    if (address + size < end) free_.emplace(address + size, end - address - size);
    taken_.emplace(address, size);
    used_ += size;
    return address;
  }

  // Whether ``address`` was allocated; it is free from now on.
  bool Free(uint64_t address) {
    auto found = taken_.find(address);
    if (found == taken_.end()) return false;
    uint64_t start = address, end = address + found->second;
    used_ -= found->second;
    taken_.erase(found);
    auto next = free_.lower_bound(start);
    if (next != free_.end() && next->first == end) {
      end += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      auto previous = std::prev(next);
      if (previous->first + previous->second == start) {
        start = previous->first;
        free_.erase(previous);
      }
    }
    free_.emplace(start, end - start);
    return true;
  }

  bool empty() const { return taken_.empty(); }
  uint64_t used() const { return used_; }
  uint64_t allocations() const { return taken_.size(); }

 private:
  static uint64_t Aligned(uint64_t address, uint64_t alignment) {
    return (address + alignment - 1) / alignment * alignment;
  }

  std::map<uint64_t, uint64_t> free_;  // start to size
  std::unordered_map<uint64_t, uint64_t> taken_;
  uint64_t used_ = 0;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_FREE_LIST_H_
