#include "device.h"

#include <tvm/ffi/error.h>

#include <utility>
#include <vector>

#include "result.h"

namespace gecko_mlc::vulkan {

namespace {

// Of what a device can do, what kernels or this runtime make use of.
void Choose(const Features& has, Features* wanted) {
  wanted->core.features.shaderInt64 = has.core.features.shaderInt64;
  wanted->core.features.shaderInt16 = has.core.features.shaderInt16;
  wanted->vulkan11.storageBuffer16BitAccess = has.vulkan11.storageBuffer16BitAccess;
  wanted->vulkan11.uniformAndStorageBuffer16BitAccess =
      has.vulkan11.uniformAndStorageBuffer16BitAccess;
  wanted->vulkan12.shaderFloat16 = has.vulkan12.shaderFloat16;
  wanted->vulkan12.shaderInt8 = has.vulkan12.shaderInt8;
  wanted->vulkan12.storageBuffer8BitAccess = has.vulkan12.storageBuffer8BitAccess;
  wanted->vulkan12.shaderSubgroupExtendedTypes = has.vulkan12.shaderSubgroupExtendedTypes;
  wanted->vulkan12.scalarBlockLayout = has.vulkan12.scalarBlockLayout;
  wanted->vulkan12.vulkanMemoryModel = has.vulkan12.vulkanMemoryModel;
  wanted->vulkan12.vulkanMemoryModelDeviceScope = has.vulkan12.vulkanMemoryModelDeviceScope;
  wanted->vulkan13.subgroupSizeControl = has.vulkan13.subgroupSizeControl;
  wanted->vulkan13.computeFullSubgroups = has.vulkan13.computeFullSubgroups;
  // Vulkan 1.3 has these everywhere.
  wanted->vulkan12.bufferDeviceAddress = VK_TRUE;
  wanted->vulkan12.timelineSemaphore = VK_TRUE;
  wanted->vulkan12.hostQueryReset = VK_TRUE;
  wanted->vulkan13.synchronization2 = VK_TRUE;
  wanted->vulkan13.maintenance4 = VK_TRUE;
  wanted->cooperative_matrix.cooperativeMatrix = has.cooperative_matrix.cooperativeMatrix;
  wanted->bfloat16.shaderBFloat16Type = has.bfloat16.shaderBFloat16Type;
  wanted->bfloat16.shaderBFloat16CooperativeMatrix = has.bfloat16.shaderBFloat16CooperativeMatrix;
}

}  // namespace

Device::Device(std::shared_ptr<const Instance> instance,
               std::shared_ptr<const PhysicalDevice> physical, int index)
    : instance_(std::move(instance)), physical_(std::move(physical)), index_(index) {
  try {
    Open();
  } catch (...) {
    Close();
    throw;
  }
}

Device::~Device() { Close(); }

void Device::Open() {
  const PhysicalDevice& physical = *physical_;
  Features features(physical.has_cooperative_matrix, physical.has_bfloat16);
  Choose(*physical.features, &features);
  std::vector<const char*> extensions;
  if (physical.has_cooperative_matrix) {
    extensions.push_back(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
  }
  if (physical.has_bfloat16) extensions.push_back(VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME);

  float priority = 1;
  VkDeviceQueueCreateInfo queue_info{};
  queue_info.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue_info.queueFamilyIndex = physical.queue_family;
  queue_info.queueCount = 1;
  queue_info.pQueuePriorities = &priority;
  VkDeviceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = &features.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue_info;
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  const InstanceFunctions& instance = instance_->functions();
  Check(instance.CreateDevice(physical.handle, &info, nullptr, &handle_), "vkCreateDevice");
  vk_ = std::make_unique<DeviceFunctions>(instance, handle_);
  for (MemoryUse use : {MemoryUse::kTensors, MemoryUse::kStaging, MemoryUse::kArguments}) {
    heaps_[static_cast<int>(use)] = std::make_unique<Heap>(*vk_, handle_, physical, use);
  }
  pipeline_cache_ = std::make_unique<PipelineCache>(*vk_, handle_, physical);
  queries_ = std::make_unique<Queries>(*this);
  VkQueue queue;
  vk_->GetDeviceQueue(handle_, physical.queue_family, 0, &queue);
  queue_ = std::make_unique<Queue>(*this, queue);
}

void Device::Close() {
  queue_.reset();
  queries_.reset();
  pipeline_cache_.reset();
  for (auto& heap : heaps_) heap.reset();
  if (vk_ != nullptr) vk_->DestroyDevice(handle_, nullptr);
}

std::string Device::Title() const {
  return "vulkan:" + std::to_string(index_) + " (" + physical_->name() + ")";
}

void Device::Check(VkResult result, const char* what) const {
  if (result == VK_SUCCESS) return;
  if (result == VK_ERROR_DEVICE_LOST) {
    lost_ = true;
    CheckAlive();
  }
  TVM_FFI_THROW(RuntimeError) << "device " << Title() << ": " << what << ": " << Name(result)
                              << " (" << static_cast<int>(result) << ")";
}

void Device::CheckAlive() const {
  if (!lost_) return;
  TVM_FFI_THROW(RuntimeError)
      << "device " << Title() << " was lost: its driver has given it up, as drivers do after a "
      << "fault or when a kernel takes them too long. What it held is gone: start the program "
      << "again, with shorter prompts at a time or another device if this repeats";
}

uint64_t Device::Allocate(MemoryUse use, uint64_t size, uint64_t alignment) {
  CheckAlive();
  try {
    return heap(use).Allocate(size, alignment);
  } catch (const tvm::ffi::Error& error) {
    if (error.kind() != "MemoryError") throw;
  }
  // Empty blocks may be what it takes; one of them may wait for commands under way.
  queue_->Wait(queue_->Submit());
  queue_->Collect();
  for (auto& other : heaps_) other->TakeSpare();
  try {
    return heap(use).Allocate(size, alignment);
  } catch (const tvm::ffi::Error& error) {
    if (error.kind() != "MemoryError") throw;
    HeapSize held = heap(MemoryUse::kTensors).Size();
    TVM_FFI_THROW(MemoryError)
        << error.message() << ". This program holds " << held.used << " bytes there in "
        << held.allocations << " tensors (" << held.reserved << " bytes with what is reserved); "
        << "use fewer slots, a smaller model or a device with more memory";
  }
  TVM_FFI_UNREACHABLE();
}

void Device::Free(MemoryUse use, uint64_t address) {
  std::shared_ptr<Block> emptied;
  heap(use).Free(address, &emptied);
  // Without a queue, as at the end of the device, nothing is under way.
  if (emptied != nullptr && queue_ != nullptr) queue_->Retire(std::move(emptied));
}

void Device::Finish() {
  uint64_t submission;
  {
    std::lock_guard lock(mutex_);
    CheckAlive();
    submission = queue_->Submit();
  }
  Finish(submission);
}

void Device::Finish(uint64_t submission) {
  CheckAlive();
  queue_->Wait(submission);
  std::lock_guard lock(mutex_);
  queue_->Collect();
  pipeline_cache_->SaveWhenQuiet();
}

}  // namespace gecko_mlc::vulkan
