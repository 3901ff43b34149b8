// Runs the blocks of a grid.
#pragma once

#include <string>

#include "execution.h"

namespace emulator {

// Which fiber goes on where several can; in the reverse order, asynchronous work is done as late as
// may be, in the others at once. A kernel that lacks a barrier or a wait gives other results in
// another order.
enum class Order { kForward, kReverse, kShuffled };

constexpr unsigned kMaxThreads = 1024;
// Bytes of shared memory a block can have; what is not declared shared within it is poisoned.
constexpr size_t kMaxShared = 227 << 10;

// The device's compute capability, times ten.
extern int compute_capability;

// Runs a launch to its end: an empty string, or what went wrong.
std::string run(const Launch& launch, Order order);

}  // namespace emulator
