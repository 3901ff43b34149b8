// Kernels that start while those before them still run (programmatic dependent launch).
//
// Until it waits, such a kernel may read nothing that a kernel since the last plain launch wrote,
// and write nothing. Here those have long ended: what they wrote is hidden from each block until it
// waits, and all of the device's memory can only be read.
#pragma once

#include <functional>
#include <string>

#include "execution.h"

namespace emulator {

// Runs a launch by `run`, keeping account of what it writes once dependent launches are in use.
std::string run_accounted(const Launch& launch, const std::function<std::string()>& run);
// Whatever comes next waits for all that was launched.
void forget_writes();

void hide_writes();
void reveal_writes();

}  // namespace emulator
