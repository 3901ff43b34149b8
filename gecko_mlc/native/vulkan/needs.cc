#include "needs.h"

#include <tvm/ffi/error.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

// Whether a subgroup multiplies matrices of 16 x 16 elements of a type, summed in float32: the ones
// that kernels have.
bool Multiplies(const PhysicalDevice& device, VkComponentTypeKHR type) {
  const auto& shapes = device.cooperative_matrices;
  return std::any_of(shapes.begin(), shapes.end(), [&](const auto& shape) {
    return shape.MSize == 16 && shape.NSize == 16 && shape.KSize == 16 && shape.AType == type &&
           shape.BType == type && shape.CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
           shape.ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
           shape.scope == VK_SCOPE_SUBGROUP_KHR && !shape.saturatingAccumulation;
  });
}

std::string LackOf(const PhysicalDevice& device, const std::string& need, const ffi::Any& value) {
  const Features& has = *device.features;
  const VkPhysicalDeviceLimits& limits = device.limits();
  auto flag = [&](VkBool32 present, const char* what) {
    return value.cast<bool>() && !present ? std::string("it has no ") + what : std::string();
  };
  auto limit = [&](uint32_t most, const char* what) {
    int64_t wanted = value.cast<int64_t>();
    if (wanted <= most) return std::string();
    return "it has " + std::to_string(most) + " " + what + ", the library wants " +
           std::to_string(wanted);
  };
  if (need == "float16") {
    return flag(has.vulkan12.shaderFloat16,
                "float16 arithmetic (models of another quantization, such as q0f32, need none)");
  }
  if (need == "storage16") {
    return flag(has.vulkan11.storageBuffer16BitAccess, "16-bit numbers in memory");
  }
  if (need == "int64") return flag(has.core.features.shaderInt64, "64-bit integers");
  if (need == "int16") return flag(has.core.features.shaderInt16, "16-bit integers");
  if (need == "cooperative_matrix") {
    return flag(Multiplies(device, VK_COMPONENT_TYPE_FLOAT16_KHR),
                "cooperative matrices (VK_KHR_cooperative_matrix) of 16 x 16 float16");
  }
  if (need == "bfloat16") {
    return flag(has.bfloat16.shaderBFloat16CooperativeMatrix &&
                    Multiplies(device, VK_COMPONENT_TYPE_BFLOAT16_KHR),
                "cooperative matrices of 16 x 16 bfloat16 (VK_KHR_shader_bfloat16)");
  }
  if (need == "shared") {
    return limit(limits.maxComputeSharedMemorySize, "bytes of shared memory in a workgroup");
  }
  if (need == "threads") {
    return limit(limits.maxComputeWorkGroupInvocations, "threads in a workgroup");
  }
  if (need == "push_constants") {
    return limit(limits.maxPushConstantsSize, "bytes of push constants");
  }
  if (need == "subgroup") {
    auto wanted = static_cast<uint32_t>(value.cast<int64_t>());
    uint32_t least = device.vulkan13.minSubgroupSize, most = device.vulkan13.maxSubgroupSize;
    if (wanted == 0) return "";
    constexpr VkSubgroupFeatureFlags exchange =
        VK_SUBGROUP_FEATURE_SHUFFLE_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_RELATIVE_BIT;
    if ((device.vulkan11.subgroupSupportedOperations & exchange) != exchange) {
      return "threads of its subgroups cannot exchange values";
    }
    if (least == wanted && most == wanted) return "";
    if (has.vulkan13.subgroupSizeControl && least <= wanted && wanted <= most &&
        (device.vulkan13.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)) {
      return "";
    }
    std::string sizes = least == most ? std::to_string(most)
                                      : std::to_string(least) + " to " + std::to_string(most);
    return "its subgroups have " + sizes + " threads, the library wants " + std::to_string(wanted);
  }
  return "what the library needs, " + need + ", is not known to this version of gecko-mlc";
}

}  // namespace

void Needs::Check(const PhysicalDevice& device, int index) const {
  std::string lacks;
  for (const auto& [need, value] : wanted_) {
    std::string lack = LackOf(device, need.cast<std::string>(), value);
    if (!lack.empty()) lacks += "\n  " + lack;
  }
  if (lacks.empty()) return;
  TVM_FFI_THROW(RuntimeError)
      << "device vulkan:" << index << " (" << device.name() << ") cannot run this library:" << lacks
      << "\ncompile with --target vulkan, which keeps to the least that devices have, or with "
      << "--target vulkan-from-device on this machine";
}

}  // namespace gecko_mlc::vulkan
