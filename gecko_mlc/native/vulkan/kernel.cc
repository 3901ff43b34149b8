#include "kernel.h"

#include <tvm/ffi/error.h>

#include <cstring>
#include <utility>

#include "active_device.h"
#include "capture.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

template <typename Value>
void Store(char* target, Value value) {
  std::memcpy(target, &value, sizeof(value));
}

void Pack(const Argument& argument, ffi::AnyView value, char* block) {
  TVMFFIAny raw = value.CopyToTVMFFIAny();
  char* target = block + argument.offset;
  switch (argument.type) {
    case Argument::Type::kAddress:
      // A null pointer comes as None: a tensor that the kernel does not touch.
      TVM_FFI_CHECK(raw.type_index == ffi::TypeIndex::kTVMFFIOpaquePtr ||
                        raw.type_index == ffi::TypeIndex::kTVMFFINone,
                    TypeError)
          << "wanted the address of a tensor on device vulkan, found "
          << value.GetTypeKey();
      Store(target, raw.type_index == ffi::TypeIndex::kTVMFFINone
                        ? uint64_t{0}
                        : reinterpret_cast<uint64_t>(raw.v_ptr));
      return;
    case Argument::Type::kInt: {
      int64_t integer = value.cast<int64_t>();
      if (argument.size == 8) return Store(target, integer);
      return Store(target, static_cast<int32_t>(integer));
    }
    case Argument::Type::kFloat:
      return Store(target, static_cast<float>(value.cast<double>()));
  }
}

}  // namespace

Pipeline::Pipeline(std::shared_ptr<Device> device, const KernelDescription& kernel)
    : device_(std::move(device)) {
  try {
    Create(kernel);
  } catch (...) {
    Destroy();
    throw;
  }
}

Pipeline::~Pipeline() { Destroy(); }

void Pipeline::Create(const KernelDescription& kernel) {
  const DeviceFunctions& vk = device_->vk();
  const std::string what = "kernel " + kernel.name;
  VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0,
                            kernel.in_memory ? 8 : kernel.block_size};
  VkPipelineLayoutCreateInfo layout_info{};
  layout_info.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
  layout_info.pushConstantRangeCount = range.size > 0;
  layout_info.pPushConstantRanges = &range;
  device_->Check(
      vk.CreatePipelineLayout(device_->handle(), &layout_info, nullptr, &handles_.layout),
      what.c_str());

  VkShaderModuleCreateInfo module_info{};
  module_info.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  module_info.codeSize = kernel.code.size() * sizeof(uint32_t);
  module_info.pCode = kernel.code.data();
  VkShaderModule module;
  device_->Check(vk.CreateShaderModule(device_->handle(), &module_info, nullptr, &module),
                 what.c_str());

  VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup{};
  subgroup.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO;
  subgroup.requiredSubgroupSize = kernel.subgroup;
  VkComputePipelineCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module;
  info.stage.pName = "main";
  info.layout = handles_.layout;
  const PhysicalDevice& physical = device_->physical();
  if (kernel.subgroup != 0) {
    if (physical.vulkan13.minSubgroupSize != physical.vulkan13.maxSubgroupSize) {
      info.stage.pNext = &subgroup;
    }
    // Threads are in subgroups by their number, none of them half full.
    if (physical.features->vulkan13.computeFullSubgroups &&
        kernel.threads[0] % kernel.subgroup == 0) {
      info.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    }
  }
  VkResult result;
  {
    std::lock_guard lock(device_->mutex());
    PipelineCache& cache = device_->pipeline_cache();
    result = vk.CreateComputePipelines(device_->handle(), cache.handle(), 1, &info, nullptr,
                                       &handles_.pipeline);
    cache.Grown();
  }
  vk.DestroyShaderModule(device_->handle(), module, nullptr);
  device_->Check(result, what.c_str());
}

void Pipeline::Destroy() {
  const DeviceFunctions& vk = device_->vk();
  vk.DestroyPipeline(device_->handle(), handles_.pipeline, nullptr);
  vk.DestroyPipelineLayout(device_->handle(), handles_.layout, nullptr);
}

Kernel::~Kernel() {
  for (int i = 0; i < kMaxDevices; ++i) {
    if (pipelines_[i] == nullptr) continue;
    if (Device* device = Runtime::Global().open_device(i)) {
      std::lock_guard lock(device->mutex());
      device->queue().Retire(std::move(pipelines_[i]));
    }
  }
}

const Pipeline& Kernel::PipelineFor(int index) {
  if (const Pipeline* pipeline = ready_[index].load(std::memory_order_acquire)) return *pipeline;
  std::lock_guard lock(mutex_);
  if (pipelines_[index] == nullptr) {
    pipelines_[index] =
        std::make_shared<Pipeline>(Runtime::Global().shared_device(index), description_);
    ready_[index].store(pipelines_[index].get(), std::memory_order_release);
  }
  return *pipelines_[index];
}

void Kernel::Launch(ffi::PackedArgs args) {
  const KernelDescription& kernel = description_;
  int count = static_cast<int>(kernel.arguments.size());
  TVM_FFI_CHECK(args.size() == count + static_cast<int>(kernel.launch.size()), TypeError)
      << "kernel " << kernel.name << " takes " << count << " arguments and "
      << kernel.launch.size() << " launch parameters, found " << args.size();
  alignas(8) char block[kMaxBlock];
  // Gaps between arguments are copied too.
  std::memset(block, 0, kernel.block_size);
  for (int i = 0; i < count; ++i) Pack(kernel.arguments[i], args[i], block);
  std::array<int64_t, 6> size{1, 1, 1, 1, 1, 1};
  for (size_t i = 0; i < kernel.launch.size(); ++i) {
    size[kernel.launch[i]] = args[count + static_cast<int>(i)].cast<int64_t>();
  }

  int index = ActiveDevice();
  Device& device = Runtime::Global().device(index);
  const uint32_t* limit = device.physical().limits().maxComputeWorkGroupCount;
  for (int d = 0; d < 3; ++d) {
    if (size[d] < 0 || size[d] > limit[d]) {
      TVM_FFI_THROW(ValueError) << "kernel " << kernel.name << ": " << size[d]
                                << " workgroups in dimension " << "xyz"[d] << ", device "
                                << device.Title() << " takes " << limit[d];
    }
    TVM_FFI_CHECK(kernel.launch.empty() || size[3 + d] == 1 || size[3 + d] == kernel.threads[d],
                  ValueError)
        << "kernel " << kernel.name << ": " << size[3 + d] << " threads in dimension " << "xyz"[d]
        << ", it was compiled for " << kernel.threads[d];
  }
  if (size[0] == 0 || size[1] == 0 || size[2] == 0) return;
  PipelineHandles handles = PipelineFor(index).handles();
  Groups groups{static_cast<uint32_t>(size[0]), static_cast<uint32_t>(size[1]),
                static_cast<uint32_t>(size[2])};
  Command(device, [&](Recording& recording) {
    if (kernel.in_memory) {
      uint64_t address = recording.StoreArguments(block, kernel.block_size);
      recording.Dispatch(handles, &address, sizeof(address), groups);
    } else {
      recording.Dispatch(handles, block, kernel.block_size, groups);
    }
  });
}

}  // namespace gecko_mlc::vulkan
