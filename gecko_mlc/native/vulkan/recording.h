// Commands for a device, written down in order: each sees what those before it wrote.

#ifndef GECKO_MLC_NATIVE_VULKAN_RECORDING_H_
#define GECKO_MLC_NATIVE_VULKAN_RECORDING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "api.h"
#include "heap.h"

namespace gecko_mlc::vulkan {

class Device;

// Memory of a device for as long as this object lives.
class Allocation {
 public:
  // Throws MemoryError.
  Allocation(Device& device, MemoryUse use, uint64_t size);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  uint64_t address() const { return address_; }
  Place place() const { return place_; }
  // Staging and arguments only.
  char* host() const { return host_; }

 private:
  Device& device_;
  MemoryUse use_;
  uint64_t address_;
  Place place_;
  char* host_ = nullptr;
};

struct Groups {
  uint32_t x, y, z;
};

// A kernel ready to be dispatched, as Vulkan's objects.
struct PipelineHandles {
  VkPipeline pipeline;
  VkPipelineLayout layout;
};

class Recording {
 public:
  // Begins ``buffer``, which is another's. ``reusable``: it will be submitted more than once.
  Recording(Device& device, VkCommandBuffer buffer, bool reusable);

  void Dispatch(PipelineHandles kernel, const void* push, uint32_t push_size, Groups groups);
  void Copy(Place from, Place to, uint64_t size);
  // Write at most 64 KiB, a multiple of 4 at a multiple of 4, that are copied right now.
  void Update(Place to, const void* data, uint64_t size);
  // What was written so far may be read by the host once the commands are over.
  void ShowToHost();
  // The time when all before this is over.
  void Timestamp(VkQueryPool pool, uint32_t query);
  // The address of a copy of ``data``, there as long as this recording.
  uint64_t StoreArguments(const void* data, uint64_t size);
  // ``resource`` lives as long as this recording.
  void Keep(std::shared_ptr<const void> resource) { kept_.push_back(std::move(resource)); }
  void End();

  VkCommandBuffer buffer() const { return buffer_; }
  // Commands so far.
  int count() const { return count_; }
  // Whether times are taken in it.
  bool timed() const { return timed_; }

 private:
  void Barrier();

  Device& device_;
  VkCommandBuffer buffer_;
  VkPipeline bound_ = VK_NULL_HANDLE;
  int count_ = 0;
  bool timed_ = false;
  // Commands submitted earlier may be under way.
  bool pending_ = true;
  std::vector<std::shared_ptr<const void>> kept_;
  std::shared_ptr<Allocation> arguments_;
  uint64_t arguments_used_ = 0;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_RECORDING_H_
