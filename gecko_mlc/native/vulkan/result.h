// What Vulkan's functions return, as errors.

#ifndef GECKO_MLC_NATIVE_VULKAN_RESULT_H_
#define GECKO_MLC_NATIVE_VULKAN_RESULT_H_

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

namespace gecko_mlc::vulkan {

// What to do where Vulkan or a driver for it is missing.
constexpr const char* kInstall =
    "install libvulkan1 and a driver, NVIDIA's own or mesa-vulkan-drivers (for AMD, Intel, and "
    "lavapipe, which needs no GPU)";

// The name of a result in Vulkan's specification.
const char* Name(VkResult result);

// RuntimeError unless ``result`` is success; ``what`` says what was attempted.
void Check(VkResult result, const char* what);

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_RESULT_H_
