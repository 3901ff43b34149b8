// Asynchronous work in groups, done when it is waited for.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace emulator {

class Deferred {
 public:
  void add(std::function<void()> work) { pending_.emplace_back(groups_, std::move(work)); }
  void commit() { ++groups_; }
  // Does the work of all committed groups but the last `left`.
  void wait(size_t left) {
    auto next = pending_.begin();
    for (; next != pending_.end() && next->first + left < groups_; ++next) next->second();
    pending_.erase(pending_.begin(), next);
  }
  void clear() {
    pending_.clear();
    groups_ = 0;
  }

 private:
  size_t groups_ = 0;  // committed
  std::vector<std::pair<size_t, std::function<void()>>> pending_;  // with the group's number
};

}  // namespace emulator
