#include "api.h"

#include <dlfcn.h>
#include <tvm/ffi/error.h>

#include "result.h"

namespace gecko_mlc::vulkan {

namespace {

template <typename Find, typename Function>
void Lookup(Find&& find, const char* name, Function& function) {
  function = reinterpret_cast<Function>(find(name));
  TVM_FFI_CHECK(function != nullptr, RuntimeError) << "Vulkan has no function " << name;
}

}  // namespace

PFN_vkGetInstanceProcAddr LoadVulkan() {
  void* library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    TVM_FFI_THROW(RuntimeError) << "found no Vulkan loader (" << dlerror() << "): " << kInstall;
  }
  auto find =
      reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
  TVM_FFI_CHECK(find != nullptr, RuntimeError) << "libvulkan.so.1 has no vkGetInstanceProcAddr";
  return find;
}

InstanceFunctions::InstanceFunctions(PFN_vkGetInstanceProcAddr find_in, VkInstance instance) {
  auto find = [&](const char* name) { return find_in(instance, name); };
#define GECKO_MLC_VULKAN_LOOKUP(name) Lookup(find, "vk" #name, name);
  GECKO_MLC_VULKAN_INSTANCE_FUNCTIONS(GECKO_MLC_VULKAN_LOOKUP)
  GetPhysicalDeviceCooperativeMatrixPropertiesKHR =
      reinterpret_cast<PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR>(
          find("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
}

DeviceFunctions::DeviceFunctions(const InstanceFunctions& instance, VkDevice device) {
  auto find = [&](const char* name) { return instance.GetDeviceProcAddr(device, name); };
  GECKO_MLC_VULKAN_DEVICE_FUNCTIONS(GECKO_MLC_VULKAN_LOOKUP)
#undef GECKO_MLC_VULKAN_LOOKUP
}

}  // namespace gecko_mlc::vulkan
