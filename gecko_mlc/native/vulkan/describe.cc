// What Python is told of devices: names, limits, features, memory in use.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/reflection/registry.h>

#include <mutex>
#include <string>

#include "runtime.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

using Description = ffi::Map<ffi::String, ffi::Any>;

ffi::String TypeName(VkComponentTypeKHR type) {
  switch (static_cast<int>(type)) {
    case VK_COMPONENT_TYPE_FLOAT16_KHR:
      return "float16";
    case VK_COMPONENT_TYPE_FLOAT32_KHR:
      return "float32";
    case VK_COMPONENT_TYPE_FLOAT64_KHR:
      return "float64";
    case VK_COMPONENT_TYPE_SINT8_KHR:
      return "int8";
    case VK_COMPONENT_TYPE_SINT16_KHR:
      return "int16";
    case VK_COMPONENT_TYPE_SINT32_KHR:
      return "int32";
    case VK_COMPONENT_TYPE_SINT64_KHR:
      return "int64";
    case VK_COMPONENT_TYPE_UINT8_KHR:
      return "uint8";
    case VK_COMPONENT_TYPE_UINT16_KHR:
      return "uint16";
    case VK_COMPONENT_TYPE_UINT32_KHR:
      return "uint32";
    case VK_COMPONENT_TYPE_UINT64_KHR:
      return "uint64";
    case VK_COMPONENT_TYPE_BFLOAT16_KHR:
      return "bfloat16";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

ffi::String ScopeName(VkScopeKHR scope) {
  switch (scope) {
    case VK_SCOPE_SUBGROUP_KHR:
      return "subgroup";
    case VK_SCOPE_WORKGROUP_KHR:
      return "workgroup";
    default:
      return "scope " + std::to_string(static_cast<int>(scope));
  }
}

ffi::String KindName(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return "cpu";
    default:
      return "other";
  }
}

ffi::Array<ffi::Any> CooperativeMatrices(const PhysicalDevice& device) {
  ffi::Array<ffi::Any> shapes;
  for (const VkCooperativeMatrixPropertiesKHR& shape : device.cooperative_matrices) {
    Description row;
    row.Set("m", static_cast<int64_t>(shape.MSize));
    row.Set("n", static_cast<int64_t>(shape.NSize));
    row.Set("k", static_cast<int64_t>(shape.KSize));
    row.Set("a", TypeName(shape.AType));
    row.Set("b", TypeName(shape.BType));
    row.Set("c", TypeName(shape.CType));
    row.Set("result", TypeName(shape.ResultType));
    row.Set("scope", ScopeName(shape.scope));
    row.Set("saturating", shape.saturatingAccumulation == VK_TRUE);
    shapes.push_back(row);
  }
  return shapes;
}

// See gecko_mlc/runtime/vulkan.py for the entries.
Description Describe(int index) {
  const PhysicalDevice& device = Runtime::Global().physical(index);
  const VkPhysicalDeviceProperties& properties = device.properties.properties;
  const Features& has = *device.features;
  auto number = [](uint64_t value) { return static_cast<int64_t>(value); };
  auto numbers = [&](const uint32_t* values) {
    return ffi::Array<int64_t>{number(values[0]), number(values[1]), number(values[2])};
  };
  Description text;
  text.Set("name", ffi::String(device.name()));
  text.Set("kind", KindName(properties.deviceType));
  text.Set("driver", ffi::String(std::string(device.vulkan12.driverName) + " " +
                                 device.vulkan12.driverInfo));
  text.Set("vulkan", ffi::String(VersionText(properties.apiVersion)));
  text.Set("threads", number(device.limits().maxComputeWorkGroupInvocations));
  text.Set("workgroup", numbers(device.limits().maxComputeWorkGroupSize));
  text.Set("workgroups", numbers(device.limits().maxComputeWorkGroupCount));
  text.Set("shared", number(device.limits().maxComputeSharedMemorySize));
  text.Set("push_constants", number(device.limits().maxPushConstantsSize));
  text.Set("largest_tensor", number(device.vulkan13.maxBufferSize));
  text.Set("subgroup", number(device.vulkan11.subgroupSize));
  text.Set("subgroup_min", number(device.vulkan13.minSubgroupSize));
  text.Set("subgroup_max", number(device.vulkan13.maxSubgroupSize));
  text.Set("subgroup_choice", has.vulkan13.subgroupSizeControl == VK_TRUE);
  text.Set("subgroup_operations",
           number(device.vulkan11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT
                      ? device.vulkan11.subgroupSupportedOperations
                      : 0));
  text.Set("float16", has.vulkan12.shaderFloat16 == VK_TRUE);
  text.Set("storage16", has.vulkan11.storageBuffer16BitAccess == VK_TRUE);
  text.Set("int64", has.core.features.shaderInt64 == VK_TRUE);
  text.Set("int16", has.core.features.shaderInt16 == VK_TRUE);
  text.Set("bfloat16", has.bfloat16.shaderBFloat16Type == VK_TRUE);
  text.Set("bfloat16_cooperative_matrix",
           has.bfloat16.shaderBFloat16CooperativeMatrix == VK_TRUE);
  text.Set("cooperative_matrix", has.cooperative_matrix.cooperativeMatrix == VK_TRUE);
  text.Set("cooperative_matrices", CooperativeMatrices(device));
  return text;
}

// Bytes and tensors on a device, without what the driver needs for itself.
Description MemoryInUse(int index) {
  Device& device = Runtime::Global().device(index);
  std::lock_guard lock(device.mutex());
  Description text;
  auto add = [&](MemoryUse use, const std::string& name) {
    HeapSize size = device.heap(use).Size();
    Description row;
    row.Set("blocks", static_cast<int64_t>(size.blocks));
    row.Set("reserved", static_cast<int64_t>(size.reserved));
    row.Set("used", static_cast<int64_t>(size.used));
    row.Set("allocations", static_cast<int64_t>(size.allocations));
    text.Set(name, row);
  };
  add(MemoryUse::kTensors, "tensors");
  add(MemoryUse::kStaging, "staging");
  add(MemoryUse::kArguments, "arguments");
  return text;
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("gecko_mlc.vulkan.describe", Describe)
      .def("gecko_mlc.vulkan.memory", MemoryInUse);
}

}  // namespace gecko_mlc::vulkan
