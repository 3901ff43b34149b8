#include "recording.h"

#include <cstring>
#include <mutex>
#include <utility>

#include "device.h"

namespace gecko_mlc::vulkan {

namespace {

constexpr VkPipelineStageFlags2 kWork =
    VK_PIPELINE_STAGE_2_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_2_ALL_TRANSFER_BIT;
constexpr VkAccessFlags2 kWrites =
    VK_ACCESS_2_SHADER_STORAGE_WRITE_BIT | VK_ACCESS_2_TRANSFER_WRITE_BIT;
constexpr VkAccessFlags2 kAccesses =
    kWrites | VK_ACCESS_2_SHADER_STORAGE_READ_BIT | VK_ACCESS_2_TRANSFER_READ_BIT;
// Arguments of some hundred kernels.
constexpr uint64_t kArgumentChunk = 64 << 10;

void MemoryBarrier(const DeviceFunctions& vk, VkCommandBuffer buffer, VkPipelineStageFlags2 stage,
                   VkAccessFlags2 access) {
  VkMemoryBarrier2 barrier{};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER_2;
  barrier.srcStageMask = kWork;
  barrier.srcAccessMask = kWrites;
  barrier.dstStageMask = stage;
  barrier.dstAccessMask = access;
  VkDependencyInfo dependency{};
  dependency.sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO;
  dependency.memoryBarrierCount = 1;
  dependency.pMemoryBarriers = &barrier;
  vk.CmdPipelineBarrier2(buffer, &dependency);
}

}  // namespace

Allocation::Allocation(Device& device, MemoryUse use, uint64_t size)
    : device_(device), use_(use), address_(device.Allocate(use, size, 1)) {
  const Block* block = device.heap(use).Find(address_, size);
  place_ = block->At(address_);
  if (use != MemoryUse::kTensors) host_ = block->Host(address_);
}

Allocation::~Allocation() {
  std::lock_guard lock(device_.mutex());
  device_.Free(use_, address_);
}

Recording::Recording(Device& device, VkCommandBuffer buffer, bool reusable)
    : device_(device), buffer_(buffer) {
  VkCommandBufferBeginInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  info.flags = reusable ? VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT
                        : VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  device.Check(device.vk().BeginCommandBuffer(buffer, &info), "vkBeginCommandBuffer");
}

// Which tensors a kernel writes is not known here, and nearly every kernel reads what the one
// before it wrote: each waits for all before it.
void Recording::Barrier() {
  if (pending_) MemoryBarrier(device_.vk(), buffer_, kWork, kAccesses);
  pending_ = true;
  ++count_;
}

void Recording::Dispatch(PipelineHandles kernel, const void* push, uint32_t push_size,
                         Groups groups) {
  Barrier();
  const DeviceFunctions& vk = device_.vk();
  if (kernel.pipeline != bound_) {
    vk.CmdBindPipeline(buffer_, VK_PIPELINE_BIND_POINT_COMPUTE, kernel.pipeline);
    bound_ = kernel.pipeline;
  }
  if (push_size > 0) {
    vk.CmdPushConstants(buffer_, kernel.layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, push_size, push);
  }
  vk.CmdDispatch(buffer_, groups.x, groups.y, groups.z);
}

void Recording::Copy(Place from, Place to, uint64_t size) {
  Barrier();
  VkBufferCopy region{from.offset, to.offset, size};
  device_.vk().CmdCopyBuffer(buffer_, from.buffer, to.buffer, 1, &region);
}

void Recording::Update(Place to, const void* data, uint64_t size) {
  Barrier();
  device_.vk().CmdUpdateBuffer(buffer_, to.buffer, to.offset, size, data);
}

void Recording::ShowToHost() {
  MemoryBarrier(device_.vk(), buffer_, VK_PIPELINE_STAGE_2_HOST_BIT, VK_ACCESS_2_HOST_READ_BIT);
}

void Recording::Timestamp(VkQueryPool pool, uint32_t query) {
  device_.vk().CmdWriteTimestamp2(buffer_, VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT, pool, query);
  ++count_;
  timed_ = true;
}

uint64_t Recording::StoreArguments(const void* data, uint64_t size) {
  if (arguments_ == nullptr || arguments_used_ + size > kArgumentChunk) {
    arguments_ = std::make_shared<Allocation>(device_, MemoryUse::kArguments, kArgumentChunk);
    arguments_used_ = 0;
    Keep(arguments_);
  }
  uint64_t offset = std::exchange(arguments_used_, arguments_used_ + size);
  std::memcpy(arguments_->host() + offset, data, size);
  return arguments_->address() + offset;
}

void Recording::End() {
  device_.Check(device_.vk().EndCommandBuffer(buffer_), "vkEndCommandBuffer");
}

}  // namespace gecko_mlc::vulkan
