// What a driver compiled of kernels, kept on disk for the next process.

#ifndef GECKO_MLC_NATIVE_VULKAN_PIPELINE_CACHE_H_
#define GECKO_MLC_NATIVE_VULKAN_PIPELINE_CACHE_H_

#include <chrono>
#include <filesystem>

#include "api.h"
#include "physical_device.h"

namespace gecko_mlc::vulkan {

// Its owner locks. The file is gecko-mlc/vulkan-DEVICE.cache in the user's cache folder
// ($XDG_CACHE_HOME, else ~/.cache), where DEVICE names the device and its driver's version. One
// that is damaged or another's is taken for none, and where it cannot be written nothing is kept.
class PipelineCache {
 public:
  PipelineCache(const DeviceFunctions& vk, VkDevice device, const PhysicalDevice& physical);
  // Saves.
  ~PipelineCache();
  PipelineCache(const PipelineCache&) = delete;
  PipelineCache& operator=(const PipelineCache&) = delete;

  VkPipelineCache handle() const { return handle_; }
  // A pipeline was created with ``handle``.
  void Grown();
  // Save if pipelines were created, but none in the last second.
  void SaveWhenQuiet();
  void Save();

 private:
  const DeviceFunctions& vk_;
  VkDevice device_;
  std::filesystem::path path_;
  VkPipelineCache handle_ = VK_NULL_HANDLE;
  bool grown_ = false;
  std::chrono::steady_clock::time_point last_growth_;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_PIPELINE_CACHE_H_
