#ifndef GECKO_MLC_NATIVE_VULKAN_ACTIVE_DEVICE_H_
#define GECKO_MLC_NATIVE_VULKAN_ACTIVE_DEVICE_H_

namespace gecko_mlc::vulkan {

// The device that TVM chose for this thread's kernels.
int ActiveDevice();

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_ACTIVE_DEVICE_H_
