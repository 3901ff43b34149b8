// The CUDA error codes that the emulator returns; the runtime and the driver share them.
#pragma once

#include <string>

namespace emulator {

enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidImage = 200,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureImplicit = 906,
};

// The last failed launch's message takes part in the text of kLaunchFailed.
void set_launch_failure(const std::string& message);
const char* error_text(int error);

}  // namespace emulator
