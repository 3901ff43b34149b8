#include "physical_device.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "result.h"

namespace gecko_mlc::vulkan {

namespace {

// The drivers that the loader was told to use, for a message.
std::string ChosenDrivers() {
  for (const char* name : {"VK_DRIVER_FILES", "VK_ICD_FILENAMES"}) {
    if (const char* value = std::getenv(name)) {
      return std::string(" (") + name + " is " + value + ")";
    }
  }
  return "";
}

// A queue for computing alone comes first: others share theirs with what draws the screen.
void ChooseQueueFamily(const InstanceFunctions& vk, PhysicalDevice* device) {
  uint32_t count = 0;
  vk.GetPhysicalDeviceQueueFamilyProperties(device->handle, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vk.GetPhysicalDeviceQueueFamilyProperties(device->handle, &count, families.data());
  for (VkQueueFlags unwanted : {VkQueueFlags{VK_QUEUE_GRAPHICS_BIT}, VkQueueFlags{0}}) {
    for (uint32_t i = 0; i < count; ++i) {
      VkQueueFlags flags = families[i].queueFlags;
      if ((flags & VK_QUEUE_COMPUTE_BIT) && !(flags & unwanted)) {
        device->queue_family = i;
        device->timestamp_bits = families[i].timestampValidBits;
        return;
      }
    }
  }
  device->problem = "has no queue for computing";
}

bool HasExtension(const std::vector<VkExtensionProperties>& extensions, const char* name) {
  return std::any_of(extensions.begin(), extensions.end(), [&](const VkExtensionProperties& e) {
    return std::strcmp(e.extensionName, name) == 0;
  });
}

std::vector<VkCooperativeMatrixPropertiesKHR> CooperativeMatrices(const InstanceFunctions& vk,
                                                                  VkPhysicalDevice device) {
  auto query = vk.GetPhysicalDeviceCooperativeMatrixPropertiesKHR;
  uint32_t count = 0;
  if (query == nullptr || query(device, &count, nullptr) != VK_SUCCESS) return {};
  VkCooperativeMatrixPropertiesKHR empty{};
  empty.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
  std::vector<VkCooperativeMatrixPropertiesKHR> shapes(count, empty);
  Check(query(device, &count, shapes.data()), "cooperative matrices of a device");
  return shapes;
}

int Preference(const PhysicalDevice& device) {
  switch (device.properties.properties.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return 2;
    default:
      return 3;
  }
}

}  // namespace

Instance::Instance() {
  PFN_vkGetInstanceProcAddr find = LoadVulkan();
  auto create =
      reinterpret_cast<PFN_vkCreateInstance>(find(VK_NULL_HANDLE, "vkCreateInstance"));
  TVM_FFI_CHECK(create != nullptr, RuntimeError) << "libvulkan.so.1 has no vkCreateInstance";
  VkApplicationInfo application{};
  application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
  application.pApplicationName = "gecko-mlc";
  application.apiVersion = VK_API_VERSION_1_3;
  VkInstanceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
  info.pApplicationInfo = &application;
  VkResult result = create(&info, nullptr, &handle_);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER) {
    TVM_FFI_THROW(RuntimeError) << "found the Vulkan loader but no driver" << ChosenDrivers()
                                << ": " << kInstall;
  }
  Check(result, "vkCreateInstance");
  functions_ = std::make_unique<InstanceFunctions>(find, handle_);
}

Instance::~Instance() { functions_->DestroyInstance(handle_, nullptr); }

Features::Features(bool with_cooperative_matrix, bool with_bfloat16) {
  core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  vulkan11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES;
  vulkan12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
  vulkan13.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES;
  cooperative_matrix.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR;
  bfloat16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_BFLOAT16_FEATURES_KHR;
  core.pNext = &vulkan11;
  vulkan11.pNext = &vulkan12;
  vulkan12.pNext = &vulkan13;
  void** end = &vulkan13.pNext;
  if (with_cooperative_matrix) {
    *end = &cooperative_matrix;
    end = &cooperative_matrix.pNext;
  }
  if (with_bfloat16) *end = &bfloat16;
}

PhysicalDevice::PhysicalDevice(const Instance& instance, VkPhysicalDevice handle)
    : handle(handle) {
  const InstanceFunctions& vk = instance.functions();
  // An older driver does not know the structures of 1.3.
  vk.GetPhysicalDeviceProperties(handle, &properties.properties);
  uint32_t version = properties.properties.apiVersion;
  if (version < VK_API_VERSION_1_3) {
    problem = "has Vulkan " + VersionText(version) + ", wanted 1.3 or newer: update its driver";
    return;
  }
  properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  vulkan11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
  vulkan12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES;
  vulkan13.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES;
  properties.pNext = &vulkan11;
  vulkan11.pNext = &vulkan12;
  vulkan12.pNext = &vulkan13;
  vk.GetPhysicalDeviceProperties2(handle, &properties);
  vk.GetPhysicalDeviceMemoryProperties(handle, &memory);

  uint32_t count = 0;
  Check(vk.EnumerateDeviceExtensionProperties(handle, nullptr, &count, nullptr),
        "extensions of a device");
  std::vector<VkExtensionProperties> extensions(count);
  Check(vk.EnumerateDeviceExtensionProperties(handle, nullptr, &count, extensions.data()),
        "extensions of a device");
  has_cooperative_matrix = HasExtension(extensions, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
  has_bfloat16 = HasExtension(extensions, VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME);
  features = std::make_unique<Features>(has_cooperative_matrix, has_bfloat16);
  vk.GetPhysicalDeviceFeatures2(handle, &features->core);
  if (features->cooperative_matrix.cooperativeMatrix) {
    cooperative_matrices = CooperativeMatrices(vk, handle);
  }
  ChooseQueueFamily(vk, this);
}

std::vector<std::shared_ptr<const PhysicalDevice>> EnumerateDevices(const Instance& instance) {
  const InstanceFunctions& vk = instance.functions();
  uint32_t count = 0;
  Check(vk.EnumeratePhysicalDevices(instance.handle(), &count, nullptr), "list of devices");
  std::vector<VkPhysicalDevice> handles(count);
  Check(vk.EnumeratePhysicalDevices(instance.handle(), &count, handles.data()),
        "list of devices");
  if (count == 0) {
    TVM_FFI_THROW(RuntimeError) << "found Vulkan but no device" << ChosenDrivers() << ": "
                                << kInstall;
  }
  std::vector<std::shared_ptr<const PhysicalDevice>> devices;
  for (VkPhysicalDevice handle : handles) {
    devices.push_back(std::make_shared<const PhysicalDevice>(instance, handle));
  }
  std::stable_sort(devices.begin(), devices.end(), [](const auto& a, const auto& b) {
    return std::make_tuple(!a->problem.empty(), Preference(*a)) <
           std::make_tuple(!b->problem.empty(), Preference(*b));
  });
  return devices;
}

std::string VersionText(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." +
         std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

}  // namespace gecko_mlc::vulkan
