// A Vulkan device in use: its memory, its queue, its pipeline cache.

#ifndef GECKO_MLC_NATIVE_VULKAN_DEVICE_H_
#define GECKO_MLC_NATIVE_VULKAN_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "api.h"
#include "heap.h"
#include "physical_device.h"
#include "pipeline_cache.h"
#include "queue.h"
#include "timestamps.h"

namespace gecko_mlc::vulkan {

// Whoever uses more than ``Check`` and constants locks ``mutex``. It is recursive: what a finished
// submission lets go of frees its memory, under the lock already.
class Device {
 public:
  Device(std::shared_ptr<const Instance> instance, std::shared_ptr<const PhysicalDevice> physical,
         int index);
  // Waits for the device, then gives everything back.
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const DeviceFunctions& vk() const { return *vk_; }
  VkDevice handle() const { return handle_; }
  const PhysicalDevice& physical() const { return *physical_; }
  int index() const { return index_; }
  // How messages call it: vulkan:0 (its name).
  std::string Title() const;

  // RuntimeError unless ``result`` is success. Remembers when the device is lost.
  void Check(VkResult result, const char* what) const;
  // RuntimeError when the device was lost.
  void CheckAlive() const;

  std::recursive_mutex& mutex() { return mutex_; }
  Queue& queue() { return *queue_; }
  Heap& heap(MemoryUse use) { return *heaps_[static_cast<int>(use)]; }
  PipelineCache& pipeline_cache() { return *pipeline_cache_; }
  Queries& queries() { return *queries_; }

  // The address of ``size`` > 0 bytes. Throws MemoryError, after waiting for what is being freed.
  uint64_t Allocate(MemoryUse use, uint64_t size, uint64_t alignment);
  // Commands recorded so far may still use them. Unknown addresses are ignored.
  void Free(MemoryUse use, uint64_t address);
  // Wait until every command recorded so far is over; locks as it needs to.
  void Finish();
  // The same for a submission.
  void Finish(uint64_t submission);

 private:
  void Open();
  void Close();

  std::shared_ptr<const Instance> instance_;
  std::shared_ptr<const PhysicalDevice> physical_;
  int index_;
  VkDevice handle_ = VK_NULL_HANDLE;
  std::unique_ptr<DeviceFunctions> vk_;
  std::recursive_mutex mutex_;
  std::unique_ptr<Heap> heaps_[3];
  std::unique_ptr<PipelineCache> pipeline_cache_;
  std::unique_ptr<Queries> queries_;
  std::unique_ptr<Queue> queue_;
  mutable std::atomic<bool> lost_{false};
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_DEVICE_H_
