// A device's one queue: commands are recorded, submitted in batches and run in order.

#ifndef GECKO_MLC_NATIVE_VULKAN_QUEUE_H_
#define GECKO_MLC_NATIVE_VULKAN_QUEUE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "api.h"
#include "recording.h"

namespace gecko_mlc::vulkan {

class Device;

// Command buffers that one thread at a time records. Those taken live as long as the pool.
class CommandPool {
 public:
  explicit CommandPool(Device& device);
  ~CommandPool();
  CommandPool(const CommandPool&) = delete;
  CommandPool& operator=(const CommandPool&) = delete;

  VkCommandBuffer Take();

 private:
  Device& device_;
  VkCommandPool handle_ = VK_NULL_HANDLE;
};

// Its owner locks. Every submission has a number, larger than those before; once it has completed,
// so have they.
class Queue {
 public:
  Queue(Device& device, VkQueue handle);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // What is being recorded; call Recorded after each command.
  Recording& recording();
  // Submits when the device is idle, or much was recorded, unless times are taken.
  void Recorded();
  // Submit what was recorded, then ``graph`` if there is one: the number of the last submission.
  uint64_t Submit(VkCommandBuffer graph = VK_NULL_HANDLE);
  // Wait for a submission; of all members, this one needs no lock.
  void Wait(uint64_t submission) const;
  bool Completed(uint64_t submission) const;
  // Let go of ``resource`` once everything recorded so far has completed.
  void Retire(std::shared_ptr<const void> resource);
  // Let go of what completed submissions used.
  void Collect();
  // Wait for what was submitted, drop what was not. Throws nothing.
  void Abandon();
  // The first submission that has not completed.
  uint64_t Oldest() const;

 private:
  struct Batch {
    std::unique_ptr<Recording> recording;  // null for a graph alone
    std::vector<std::shared_ptr<const void>> retired;
    uint64_t submission = 0;
  };

  void Enqueue(VkCommandBuffer recorded, VkCommandBuffer graph);

  Device& device_;
  VkQueue handle_;
  VkSemaphore timeline_ = VK_NULL_HANDLE;
  CommandPool pool_;
  std::vector<VkCommandBuffer> unused_;
  Batch current_;
  std::deque<Batch> under_way_;
  uint64_t submitted_ = 0;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_QUEUE_H_
