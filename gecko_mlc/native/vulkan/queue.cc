#include "queue.h"

#include <utility>

#include "device.h"

namespace gecko_mlc::vulkan {

namespace {

// Submitting costs as much as recording some dozen commands, and a device is not to wait for it:
// an idle device gets a few commands, a busy one many.
constexpr int kFew = 8;
constexpr int kMany = 128;

}  // namespace

CommandPool::CommandPool(Device& device) : device_(device) {
  VkCommandPoolCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  info.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  info.queueFamilyIndex = device.physical().queue_family;
  device.Check(device.vk().CreateCommandPool(device.handle(), &info, nullptr, &handle_),
               "vkCreateCommandPool");
}

CommandPool::~CommandPool() {
  device_.vk().DestroyCommandPool(device_.handle(), handle_, nullptr);
}

VkCommandBuffer CommandPool::Take() {
  VkCommandBufferAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
  info.commandPool = handle_;
  info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  info.commandBufferCount = 1;
  VkCommandBuffer buffer;
  device_.Check(device_.vk().AllocateCommandBuffers(device_.handle(), &info, &buffer),
                "vkAllocateCommandBuffers");
  return buffer;
}

Queue::Queue(Device& device, VkQueue handle) : device_(device), handle_(handle), pool_(device) {
  VkSemaphoreTypeCreateInfo type{};
  type.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO;
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  VkSemaphoreCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO;
  info.pNext = &type;
  device.Check(device.vk().CreateSemaphore(device.handle(), &info, nullptr, &timeline_),
               "vkCreateSemaphore");
}

void Queue::Abandon() {
  // A lost device has nothing under way, whatever this returns.
  device_.vk().DeviceWaitIdle(device_.handle());
  // What they let go of may be retired itself: by then both are empty.
  std::deque<Batch> under_way = std::exchange(under_way_, {});
  Batch current = std::exchange(current_, {});
}

Queue::~Queue() {
  Abandon();
  device_.vk().DestroySemaphore(device_.handle(), timeline_, nullptr);
}

Recording& Queue::recording() {
  if (current_.recording == nullptr) {
    Collect();
    if (unused_.empty()) unused_.push_back(pool_.Take());
    current_.recording = std::make_unique<Recording>(device_, unused_.back(), false);
    unused_.pop_back();
  }
  return *current_.recording;
}

void Queue::Recorded() {
  // The device would wait for the host between two submissions, and that would count as a kernel's
  // time.
  if (current_.recording->timed()) return;
  int count = current_.recording->count();
  if (count >= kMany || (count % kFew == 0 && Completed(submitted_))) Submit();
}

uint64_t Queue::Submit(VkCommandBuffer graph) {
  VkCommandBuffer recorded = VK_NULL_HANDLE;
  if (current_.recording != nullptr) {
    current_.recording->End();
    recorded = current_.recording->buffer();
  }
  if (recorded == VK_NULL_HANDLE && graph == VK_NULL_HANDLE) return submitted_;
  Batch batch = std::exchange(current_, Batch());
  Enqueue(recorded, graph);
  batch.submission = submitted_;
  under_way_.push_back(std::move(batch));
  return submitted_;
}

void Queue::Enqueue(VkCommandBuffer recorded, VkCommandBuffer graph) {
  VkCommandBufferSubmitInfo commands[2]{};
  uint32_t count = 0;
  for (VkCommandBuffer buffer : {recorded, graph}) {
    if (buffer == VK_NULL_HANDLE) continue;
    commands[count].sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO;
    commands[count++].commandBuffer = buffer;
  }
  VkSemaphoreSubmitInfo signal{};
  signal.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO;
  signal.semaphore = timeline_;
  signal.value = submitted_ + 1;
  signal.stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT;
  VkSubmitInfo2 info{};
  info.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2;
  info.commandBufferInfoCount = count;
  info.pCommandBufferInfos = commands;
  info.signalSemaphoreInfoCount = 1;
  info.pSignalSemaphoreInfos = &signal;
  device_.Check(device_.vk().QueueSubmit2(handle_, 1, &info, VK_NULL_HANDLE), "vkQueueSubmit2");
  ++submitted_;
}

void Queue::Wait(uint64_t submission) const {
  VkSemaphoreWaitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
  info.semaphoreCount = 1;
  info.pSemaphores = &timeline_;
  info.pValues = &submission;
  device_.Check(device_.vk().WaitSemaphores(device_.handle(), &info, UINT64_MAX),
                "vkWaitSemaphores");
}

bool Queue::Completed(uint64_t submission) const {
  uint64_t completed = 0;
  device_.Check(
      device_.vk().GetSemaphoreCounterValue(device_.handle(), timeline_, &completed),
      "vkGetSemaphoreCounterValue");
  return completed >= submission;
}

void Queue::Retire(std::shared_ptr<const void> resource) {
  if (current_.recording != nullptr) {
    current_.retired.push_back(std::move(resource));
  } else if (!under_way_.empty()) {
    under_way_.back().retired.push_back(std::move(resource));
  }
}

void Queue::Collect() {
  while (!under_way_.empty() && Completed(under_way_.front().submission)) {
    Batch batch = std::move(under_way_.front());
    under_way_.pop_front();
    if (batch.recording != nullptr) unused_.push_back(batch.recording->buffer());
  }
}

uint64_t Queue::Oldest() const {
  return under_way_.empty() ? submitted_ : under_way_.front().submission;
}

}  // namespace gecko_mlc::vulkan
