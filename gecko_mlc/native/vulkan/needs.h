// What a library's kernels need of a device.

#ifndef GECKO_MLC_NATIVE_VULKAN_NEEDS_H_
#define GECKO_MLC_NATIVE_VULKAN_NEEDS_H_

#include <tvm/ffi/container/map.h>

#include "physical_device.h"

namespace gecko_mlc::vulkan {

class Needs {
 public:
  Needs() = default;
  // From the module's text.
  explicit Needs(tvm::ffi::Map<tvm::ffi::Any, tvm::ffi::Any> wanted) : wanted_(std::move(wanted)) {}

  // RuntimeError with everything that device ``index`` lacks, and what to compile instead.
  void Check(const PhysicalDevice& device, int index) const;

 private:
  tvm::ffi::Map<tvm::ffi::Any, tvm::ffi::Any> wanted_;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_NEEDS_H_
