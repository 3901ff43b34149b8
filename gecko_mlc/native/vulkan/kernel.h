// Kernels as a code generator describes them, and launching them.

#ifndef GECKO_MLC_NATIVE_VULKAN_KERNEL_H_
#define GECKO_MLC_NATIVE_VULKAN_KERNEL_H_

#include <tvm/ffi/function.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "runtime.h"

namespace gecko_mlc::vulkan {

// The most bytes that a kernel's arguments may take: some hundred of them.
constexpr uint32_t kMaxBlock = 2048;

// One argument of a kernel and where it is in the block of arguments.
struct Argument {
  enum class Type { kAddress, kInt, kFloat } type;
  uint32_t offset;
  uint32_t size;
};

struct KernelDescription {
  std::string name;
  std::vector<uint32_t> code;  // SPIR-V
  std::array<uint32_t, 3> threads;
  std::vector<Argument> arguments;
  uint32_t block_size;  // of all arguments, a multiple of 8
  // For each launch parameter, which dimension of the workgroups (0 to 2) or threads (3 to 5).
  std::vector<int> launch;
  // Whether the arguments are in memory, at the address in the push constants.
  bool in_memory;
  uint32_t subgroup;  // the size of subgroups it was written for; 0: any
};

// A kernel compiled by a device's driver.
class Pipeline {
 public:
  Pipeline(std::shared_ptr<Device> device, const KernelDescription& kernel);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  PipelineHandles handles() const { return handles_; }

 private:
  void Create(const KernelDescription& kernel);
  void Destroy();

  std::shared_ptr<Device> device_;
  PipelineHandles handles_{VK_NULL_HANDLE, VK_NULL_HANDLE};
};

// A kernel on all devices, compiled for each at its first launch there.
class Kernel {
 public:
  explicit Kernel(KernelDescription description) : description_(std::move(description)) {}
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  const std::string& name() const { return description_.name; }
  // Arguments, then launch parameters. Recorded for the thread's active device.
  void Launch(tvm::ffi::PackedArgs args);

 private:
  const Pipeline& PipelineFor(int index);

  KernelDescription description_;
  std::mutex mutex_;
  std::array<std::shared_ptr<Pipeline>, kMaxDevices> pipelines_;
  // The same pipelines, for a look without the lock.
  std::array<std::atomic<const Pipeline*>, kMaxDevices> ready_{};
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_KERNEL_H_
