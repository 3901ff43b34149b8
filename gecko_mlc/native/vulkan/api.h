// Vulkan's functions, looked up in libvulkan at run time: building needs its headers alone, and a
// machine without it does everything else.

#ifndef GECKO_MLC_NATIVE_VULKAN_API_H_
#define GECKO_MLC_NATIVE_VULKAN_API_H_

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include "extensions.h"

#define GECKO_MLC_VULKAN_INSTANCE_FUNCTIONS(_) \
  _(CreateDevice)                              \
  _(DestroyInstance)                           \
  _(EnumerateDeviceExtensionProperties)        \
  _(EnumeratePhysicalDevices)                  \
  _(GetDeviceProcAddr)                         \
  _(GetPhysicalDeviceFeatures2)                \
  _(GetPhysicalDeviceMemoryProperties)         \
  _(GetPhysicalDeviceProperties)               \
  _(GetPhysicalDeviceProperties2)              \
  _(GetPhysicalDeviceQueueFamilyProperties)

#define GECKO_MLC_VULKAN_DEVICE_FUNCTIONS(_) \
  _(AllocateCommandBuffers)                  \
  _(AllocateMemory)                          \
  _(BeginCommandBuffer)                      \
  _(BindBufferMemory)                        \
  _(CmdBindPipeline)                         \
  _(CmdCopyBuffer)                           \
  _(CmdDispatch)                             \
  _(CmdPipelineBarrier2)                     \
  _(CmdPushConstants)                        \
  _(CmdUpdateBuffer)                         \
  _(CmdWriteTimestamp2)                      \
  _(CreateBuffer)                            \
  _(CreateCommandPool)                       \
  _(CreateComputePipelines)                  \
  _(CreatePipelineCache)                     \
  _(CreatePipelineLayout)                    \
  _(CreateQueryPool)                         \
  _(CreateSemaphore)                         \
  _(CreateShaderModule)                      \
  _(DestroyBuffer)                           \
  _(DestroyCommandPool)                      \
  _(DestroyDevice)                           \
  _(DestroyPipeline)                         \
  _(DestroyPipelineCache)                    \
  _(DestroyPipelineLayout)                   \
  _(DestroyQueryPool)                        \
  _(DestroySemaphore)                        \
  _(DestroyShaderModule)                     \
  _(DeviceWaitIdle)                          \
  _(EndCommandBuffer)                        \
  _(FreeMemory)                              \
  _(GetBufferDeviceAddress)                  \
  _(GetBufferMemoryRequirements)             \
  _(GetDeviceQueue)                          \
  _(GetPipelineCacheData)                    \
  _(GetQueryPoolResults)                     \
  _(GetSemaphoreCounterValue)                \
  _(MapMemory)                               \
  _(QueueSubmit2)                            \
  _(ResetQueryPool)                          \
  _(WaitSemaphores)

namespace gecko_mlc::vulkan {

#define GECKO_MLC_VULKAN_DECLARE(name) PFN_vk##name name = nullptr;

struct InstanceFunctions {
  GECKO_MLC_VULKAN_INSTANCE_FUNCTIONS(GECKO_MLC_VULKAN_DECLARE)
  // Null where no driver has VK_KHR_cooperative_matrix.
  PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR
      GetPhysicalDeviceCooperativeMatrixPropertiesKHR = nullptr;

  InstanceFunctions(PFN_vkGetInstanceProcAddr find, VkInstance instance);
};

struct DeviceFunctions {
  GECKO_MLC_VULKAN_DEVICE_FUNCTIONS(GECKO_MLC_VULKAN_DECLARE)

  DeviceFunctions(const InstanceFunctions& instance, VkDevice device);
};

#undef GECKO_MLC_VULKAN_DECLARE

// vkGetInstanceProcAddr of libvulkan, which stays loaded. Throws where there is none.
PFN_vkGetInstanceProcAddr LoadVulkan();

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_API_H_
