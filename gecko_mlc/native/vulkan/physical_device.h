// The machine's Vulkan devices: what each can do, and in which order they are numbered.

#ifndef GECKO_MLC_NATIVE_VULKAN_PHYSICAL_DEVICE_H_
#define GECKO_MLC_NATIVE_VULKAN_PHYSICAL_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api.h"

namespace gecko_mlc::vulkan {

// Vulkan itself in this process.
class Instance {
 public:
  // Throws where there is no loader or no driver.
  Instance();
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  const InstanceFunctions& functions() const { return *functions_; }
  VkInstance handle() const { return handle_; }

 private:
  VkInstance handle_ = VK_NULL_HANDLE;
  std::unique_ptr<InstanceFunctions> functions_;
};

// The features of a device that matter here, as a chain that Vulkan fills or reads.
struct Features {
  VkPhysicalDeviceFeatures2 core{};
  VkPhysicalDeviceVulkan11Features vulkan11{};
  VkPhysicalDeviceVulkan12Features vulkan12{};
  VkPhysicalDeviceVulkan13Features vulkan13{};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR cooperative_matrix{};
  VkPhysicalDeviceShaderBfloat16FeaturesKHR bfloat16{};

  // Types set, linked; the extensions' structures only where the device has the extensions.
  Features(bool with_cooperative_matrix, bool with_bfloat16);
  Features(const Features&) = delete;
  Features& operator=(const Features&) = delete;
};

struct PhysicalDevice {
  VkPhysicalDevice handle;
  VkPhysicalDeviceProperties2 properties{};
  VkPhysicalDeviceVulkan11Properties vulkan11{};
  VkPhysicalDeviceVulkan12Properties vulkan12{};
  VkPhysicalDeviceVulkan13Properties vulkan13{};
  VkPhysicalDeviceMemoryProperties memory{};
  std::unique_ptr<Features> features;
  std::vector<VkCooperativeMatrixPropertiesKHR> cooperative_matrices;
  bool has_cooperative_matrix = false;
  bool has_bfloat16 = false;
  uint32_t queue_family = 0;
  uint32_t timestamp_bits = 0;
  // Why it cannot be used; empty where it can.
  std::string problem;

  const char* name() const { return properties.properties.deviceName; }
  const VkPhysicalDeviceLimits& limits() const { return properties.properties.limits; }

  PhysicalDevice(const Instance& instance, VkPhysicalDevice handle);
};

// Every device, those that can be used first: GPUs of their own, then those of processors, then
// virtual ones, then drivers that compute on the processor.
std::vector<std::shared_ptr<const PhysicalDevice>> EnumerateDevices(const Instance& instance);

// A version as people write it: 1.3.230.
std::string VersionText(uint32_t version);

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_PHYSICAL_DEVICE_H_
