// mbarrier objects: 64 bits in shared memory. All threads that see one run on the same CPU thread.
#pragma once

#include <cstdint>

#include "execution.h"

namespace emulator {

// Its phase ends when no arrival and no byte is pending; the next phase then begins. The layout is
// ours: nothing but these functions may look at it.
class MBarrier {
 public:
  static MBarrier& at(unsigned char* address) {
    if (reinterpret_cast<uintptr_t>(address) % 8 != 0) fail("misaligned mbarrier");
    return *reinterpret_cast<MBarrier*>(address);
  }
  // What parity the phase of an arrival's state had.
  static uint32_t parity(uint64_t state) { return state & 1; }

  void init(uint32_t count) {
    if (count == 0 || count > kMaxCount) fail("an mbarrier is for 1 to 32767 arrivals here");
    phase_ = 0;
    count_ = pending_ = count;
    bytes_ = 0;
    valid_ = kValid;
  }
  uint64_t arrive(uint32_t count) {
    check();
    if (count > pending_) fail("more arrivals at an mbarrier than it is for");
    const uint64_t state = phase_;
    pending_ -= count;
    settle();
    return state;
  }
  void expect(uint32_t bytes) {
    check();
    bytes_ = bytes_ + static_cast<int64_t>(bytes);
  }
  void complete(uint32_t bytes) {
    check();
    bytes_ = bytes_ - static_cast<int64_t>(bytes);
    settle();
  }
  // Whether the phase of this parity has ended.
  bool completed(uint32_t parity) const {
    check();
    return phase_ != parity;
  }
  void wait(uint32_t parity) {
    while (!completed(parity)) sleep_on(this);
  }

 private:
  static constexpr uint64_t kMaxCount = (1 << 15) - 1, kValid = 5;

  void check() const {
    if (valid_ != kValid) fail("an mbarrier is used that was not initialised");
  }
  void settle() {
    if (pending_ != 0 || bytes_ != 0) return;
    phase_ ^= 1;
    pending_ = count_;
    wake(this);
  }

  uint64_t phase_ : 1, count_ : 15, pending_ : 15;
  int64_t bytes_ : 29;
  uint64_t valid_ : 4;
};

static_assert(sizeof(MBarrier) == 8);

}  // namespace emulator
