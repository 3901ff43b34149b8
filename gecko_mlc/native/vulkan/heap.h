// A device's memory: large blocks asked of the driver, tensors inside them.

#ifndef GECKO_MLC_NATIVE_VULKAN_HEAP_H_
#define GECKO_MLC_NATIVE_VULKAN_HEAP_H_

#include <cstdint>
#include <map>
#include <memory>

#include "api.h"
#include "free_list.h"
#include "physical_device.h"

namespace gecko_mlc::vulkan {

// What memory is for, which decides where it is.
enum class MemoryUse {
  kTensors,    // on the device
  kStaging,    // on the host, read and written by both sides
  kArguments,  // written by the host, read by kernels: on the device where the host can reach it
};

// A part of a buffer.
struct Place {
  VkBuffer buffer;
  VkDeviceSize offset;
};

// Memory from the driver, all of it one buffer whose address kernels can use.
class Block {
 public:
  // Throws MemoryError where there is not so much.
  Block(const DeviceFunctions& vk, VkDevice device, const PhysicalDevice& physical, MemoryUse use,
        uint64_t size);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  uint64_t address() const { return address_; }
  uint64_t size() const { return size_; }
  FreeList& free_list() { return *free_list_; }
  const FreeList& free_list() const { return *free_list_; }
  bool Holds(uint64_t address, uint64_t size) const {
    uint64_t offset = address - address_;
    return address >= address_ && offset <= size_ && size <= size_ - offset;
  }
  Place At(uint64_t address) const { return {buffer_, address - address_}; }
  // Where the host finds ``address``; staging and arguments only.
  char* Host(uint64_t address) const { return host_ + (address - address_); }
  // The address of what the host has at ``pointer``; 0 if that is not ``size`` bytes of this block.
  uint64_t AddressOf(const void* pointer, uint64_t size) const;

 private:
  void Create(const PhysicalDevice& physical, MemoryUse use);
  void Destroy();

  const DeviceFunctions& vk_;
  VkDevice device_;
  uint64_t size_;
  VkBuffer buffer_ = VK_NULL_HANDLE;
  VkDeviceMemory memory_ = VK_NULL_HANDLE;
  uint64_t address_ = 0;
  char* host_ = nullptr;
  std::unique_ptr<FreeList> free_list_;
};

struct HeapSize {
  uint64_t blocks, reserved, used, allocations;
};

// Memory for one use. Its owner locks.
class Heap {
 public:
  Heap(const DeviceFunctions& vk, VkDevice device, const PhysicalDevice& physical, MemoryUse use);

  // The address of ``size`` > 0 bytes. Throws MemoryError.
  uint64_t Allocate(uint64_t size, uint64_t alignment);
  // Whether ``address`` was allocated here. A block that goes back to the driver is left in
  // ``emptied``: commands under way may still use it.
  bool Free(uint64_t address, std::shared_ptr<Block>* emptied);
  // The block that is kept although nothing is in it, if any.
  std::shared_ptr<Block> TakeSpare();
  // The block with these bytes, or null.
  const Block* Find(uint64_t address, uint64_t size) const;
  // The block in which the host has these bytes, or null.
  const Block* FindHost(const void* pointer, uint64_t size) const;
  HeapSize Size() const;

 private:
  const DeviceFunctions& vk_;
  VkDevice device_;
  const PhysicalDevice& physical_;
  MemoryUse use_;
  uint64_t block_size_;
  std::map<uint64_t, std::shared_ptr<Block>> blocks_;  // by address
  Block* spare_ = nullptr;
  bool drivers_align_ = true;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_HEAP_H_
