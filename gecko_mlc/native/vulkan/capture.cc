#include "capture.h"

#include <tvm/ffi/error.h>

namespace gecko_mlc::vulkan {

namespace {

thread_local Capture* current = nullptr;

}  // namespace

Capture::Capture(Device& device, Recording& recording) : device_(device), recording_(recording) {
  TVM_FFI_CHECK(current == nullptr, RuntimeError) << "a graph inside a graph is not possible";
  current = this;
}

Capture::~Capture() { current = nullptr; }

Recording* Capture::Of(const Device& device) {
  return current != nullptr && &current->device_ == &device ? &current->recording_ : nullptr;
}

}  // namespace gecko_mlc::vulkan
