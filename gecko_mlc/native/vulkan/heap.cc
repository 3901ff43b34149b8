#include "heap.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "result.h"

namespace gecko_mlc::vulkan {

namespace {

constexpr uint64_t kMiB = 1 << 20;
// Whatever a vector load or a matrix load asks for; tensors next to each other share no cache line.
constexpr uint64_t kAlignment = 256;

struct Wish {
  VkMemoryPropertyFlags required, preferred, avoided;
};

Wish WishFor(MemoryUse use) {
  constexpr VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  constexpr VkMemoryPropertyFlags cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  constexpr VkMemoryPropertyFlags shared =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  switch (use) {
    case MemoryUse::kTensors:
      // What the host can reach of a GPU's memory is little, on some machines.
      return {local, 0, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT};
    case MemoryUse::kStaging:
      // The host reads memory that it does not cache at some hundred MB/s.
      return {shared, cached, local};
    case MemoryUse::kArguments:
      return {shared, local, cached};
  }
  return {};
}

// Vulkan guarantees a type with the required flags of every use.
uint32_t MemoryType(const VkPhysicalDeviceMemoryProperties& memory, uint32_t allowed,
                    MemoryUse use) {
  // Other flags stand for memory with rules of its own, such as AMD's uncached memory.
  constexpr VkMemoryPropertyFlags known =
      VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
      VK_MEMORY_PROPERTY_HOST_COHERENT_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  Wish wish = WishFor(use);
  int best_score = -1;
  uint32_t best = 0;
  for (uint32_t type = 0; type < memory.memoryTypeCount; ++type) {
    VkMemoryPropertyFlags flags = memory.memoryTypes[type].propertyFlags;
    if (!(allowed >> type & 1) || (flags & ~known) || (flags & wish.required) != wish.required) {
      continue;
    }
    int score = 2 * ((flags & wish.preferred) == wish.preferred) + !(flags & wish.avoided);
    if (score > best_score) {
      best_score = score;
      best = type;
    }
  }
  TVM_FFI_CHECK(best_score >= 0, RuntimeError) << "the device has no memory of a type that fits";
  return best;
}

uint64_t BlockSize(MemoryUse use) {
  switch (use) {
    case MemoryUse::kTensors:
      return 64 * kMiB;
    case MemoryUse::kStaging:
      return 16 * kMiB;
    case MemoryUse::kArguments:
      return kMiB;
  }
  return 0;
}

void CheckMemory(VkResult result, const char* what, uint64_t size, const PhysicalDevice& physical) {
  if (result == VK_SUCCESS) return;
  TVM_FFI_THROW(MemoryError) << "device " << physical.name() << " has no " << size
                             << " bytes of memory to give: " << what << ": " << Name(result);
}

}  // namespace

Block::Block(const DeviceFunctions& vk, VkDevice device, const PhysicalDevice& physical,
             MemoryUse use, uint64_t size)
    : vk_(vk), device_(device), size_(size) {
  if (size > physical.vulkan13.maxBufferSize) {
    TVM_FFI_THROW(MemoryError) << "a tensor of " << size << " bytes; device " << physical.name()
                               << " allows " << physical.vulkan13.maxBufferSize
                               << " bytes in one piece";
  }
  try {
    Create(physical, use);
  } catch (...) {
    Destroy();
    throw;
  }
}

Block::~Block() { Destroy(); }

void Block::Create(const PhysicalDevice& physical, MemoryUse use) {
  VkBufferCreateInfo buffer_info{};
  buffer_info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  buffer_info.size = size_;
  buffer_info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                      VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                      VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  CheckMemory(vk_.CreateBuffer(device_, &buffer_info, nullptr, &buffer_), "vkCreateBuffer", size_,
              physical);
  VkMemoryRequirements requirements;
  vk_.GetBufferMemoryRequirements(device_, buffer_, &requirements);

  VkMemoryAllocateFlagsInfo flags{};
  flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
  flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
  VkMemoryAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
  info.pNext = &flags;
  info.allocationSize = requirements.size;
  info.memoryTypeIndex = MemoryType(physical.memory, requirements.memoryTypeBits, use);
  uint32_t heap = physical.memory.memoryTypes[info.memoryTypeIndex].heapIndex;
  // A driver need not check this itself.
  CheckMemory(requirements.size > physical.memory.memoryHeaps[heap].size
                  ? VK_ERROR_OUT_OF_DEVICE_MEMORY
                  : vk_.AllocateMemory(device_, &info, nullptr, &memory_),
              "vkAllocateMemory", size_, physical);
  CheckMemory(vk_.BindBufferMemory(device_, buffer_, memory_, 0), "vkBindBufferMemory", size_,
              physical);
  if (use != MemoryUse::kTensors) {
    void* host = nullptr;
    CheckMemory(vk_.MapMemory(device_, memory_, 0, VK_WHOLE_SIZE, 0, &host), "vkMapMemory", size_,
                physical);
    host_ = static_cast<char*>(host);
  }
  VkBufferDeviceAddressInfo address{};
  address.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
  address.buffer = buffer_;
  address_ = vk_.GetBufferDeviceAddress(device_, &address);
  free_list_ = std::make_unique<FreeList>(address_, size_);
}

void Block::Destroy() {
  if (buffer_ != VK_NULL_HANDLE) vk_.DestroyBuffer(device_, buffer_, nullptr);
  if (memory_ != VK_NULL_HANDLE) vk_.FreeMemory(device_, memory_, nullptr);
}

uint64_t Block::AddressOf(const void* pointer, uint64_t size) const {
  auto at = reinterpret_cast<uintptr_t>(pointer), start = reinterpret_cast<uintptr_t>(host_);
  if (host_ == nullptr || at < start || at - start > size_ || size > size_ - (at - start)) return 0;
  return address_ + (at - start);
}

Heap::Heap(const DeviceFunctions& vk, VkDevice device, const PhysicalDevice& physical,
           MemoryUse use)
    : vk_(vk), device_(device), physical_(physical), use_(use), block_size_(BlockSize(use)) {}

uint64_t Heap::Allocate(uint64_t size, uint64_t alignment) {
  alignment = std::max(alignment, kAlignment);
  // Next to each other at the same alignment, so that no gaps too small for anything remain.
  size = (size + kAlignment - 1) / kAlignment * kAlignment;
  bool alone = size + alignment > block_size_ / 2;
  if (!alone) {
    for (auto& [_, block] : blocks_) {
      if (auto address = block->free_list().Allocate(size, alignment)) {
        if (block.get() == spare_) spare_ = nullptr;
        return *address;
      }
    }
  }
  // Nearly all drivers' addresses are multiples of more: only where they are not is there room
  // to skip to one.
  uint64_t room = size + (drivers_align_ && alignment == kAlignment ? 0 : alignment);
  auto block = std::make_shared<Block>(vk_, device_, physical_, use_, alone ? room : block_size_);
  auto address = block->free_list().Allocate(size, alignment);
  if (!address) {
    drivers_align_ = false;
    block.reset();
    block = std::make_shared<Block>(vk_, device_, physical_, use_, size + alignment);
    address = block->free_list().Allocate(size, alignment);
  }
  blocks_.emplace(block->address(), std::move(block));
  return *address;
}

bool Heap::Free(uint64_t address, std::shared_ptr<Block>* emptied) {
  auto next = blocks_.upper_bound(address);
  if (next == blocks_.begin()) return false;
  auto found = std::prev(next);
  Block& block = *found->second;
  if (!block.Holds(address, 1) || !block.free_list().Free(address)) return false;
  if (block.free_list().empty()) {
    // One block stays, for whoever allocates and frees in turn.
    if (spare_ == nullptr && block.size() == block_size_) {
      spare_ = &block;
    } else {
      *emptied = std::move(found->second);
      blocks_.erase(found);
    }
  }
  return true;
}

std::shared_ptr<Block> Heap::TakeSpare() {
  if (spare_ == nullptr) return nullptr;
  auto found = blocks_.find(spare_->address());
  std::shared_ptr<Block> block = std::move(found->second);
  blocks_.erase(found);
  spare_ = nullptr;
  return block;
}

const Block* Heap::Find(uint64_t address, uint64_t size) const {
  auto next = blocks_.upper_bound(address);
  if (next == blocks_.begin()) return nullptr;
  const Block& block = *std::prev(next)->second;
  return block.Holds(address, size) ? &block : nullptr;
}

const Block* Heap::FindHost(const void* pointer, uint64_t size) const {
  for (const auto& [_, block] : blocks_) {
    if (block->AddressOf(pointer, size) != 0) return block.get();
  }
  return nullptr;
}

HeapSize Heap::Size() const {
  HeapSize total{blocks_.size(), 0, 0, 0};
  for (const auto& [_, block] : blocks_) {
    total.reserved += block->size();
    total.used += block->free_list().used();
    total.allocations += block->free_list().allocations();
  }
  return total;
}

}  // namespace gecko_mlc::vulkan
