// A Vulkan layer that makes a good driver a bad one, as the variable FAULTY_VULKAN says:
//   old           its Vulkan is 1.2
//   no-float16    it has no float16 arithmetic
//   memory=BYTES  it has so much memory
//   lost=N        submission N, counted from 1, and all after it find the device lost

#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

PFN_vkGetInstanceProcAddr next_instance;
PFN_vkGetDeviceProcAddr next_device;
VkInstance instance;
// The functions of the layer or driver below, looked up while the instance or device is made: later
// the same question finds this layer's own.
struct {
  PFN_vkGetPhysicalDeviceProperties GetPhysicalDeviceProperties;
  PFN_vkGetPhysicalDeviceFeatures2 GetPhysicalDeviceFeatures2;
  PFN_vkAllocateMemory AllocateMemory;
  PFN_vkFreeMemory FreeMemory;
  PFN_vkQueueSubmit2 QueueSubmit2;
  PFN_vkWaitSemaphores WaitSemaphores;
} next;
std::mutex mutex;
std::map<VkDeviceMemory, VkDeviceSize> allocated;
int submissions = 0;

// Whether this fault is wanted, and its number.
bool Faulty(const char* name, uint64_t* number = nullptr) {
  const char* value = std::getenv("FAULTY_VULKAN");
  if (value == nullptr || std::strncmp(value, name, std::strlen(name)) != 0) return false;
  const char* equals = std::strchr(value, '=');
  if (number != nullptr && equals != nullptr) *number = std::strtoull(equals + 1, nullptr, 10);
  return true;
}

bool Lost() {
  uint64_t first = 0;
  return Faulty("lost", &first) && static_cast<uint64_t>(submissions) >= first;
}

// The loader's structure that says who comes after this layer.
template <typename Link>
Link* LayerLink(const void* chain, VkStructureType type) {
  auto* link = static_cast<Link*>(const_cast<void*>(chain));
  while (link->sType != type || link->function != VK_LAYER_LINK_INFO) {
    link = static_cast<Link*>(const_cast<void*>(link->pNext));
  }
  return link;
}

VkResult CreateInstance(const VkInstanceCreateInfo* info, const VkAllocationCallbacks* callbacks,
                        VkInstance* created) {
  auto* link = LayerLink<VkLayerInstanceCreateInfo>(
      info->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
  next_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  auto create = reinterpret_cast<PFN_vkCreateInstance>(
      next_instance(VK_NULL_HANDLE, "vkCreateInstance"));
  VkResult result = create(info, callbacks, created);
  instance = *created;
#define FIND(find, of, function) \
  next.function = reinterpret_cast<PFN_vk##function>(find(of, "vk" #function))
  FIND(next_instance, instance, GetPhysicalDeviceProperties);
  FIND(next_instance, instance, GetPhysicalDeviceFeatures2);
  return result;
}

VkResult CreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo* info,
                      const VkAllocationCallbacks* callbacks, VkDevice* created) {
  auto* link = LayerLink<VkLayerDeviceCreateInfo>(info->pNext,
                                                  VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
  auto find = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  auto create = reinterpret_cast<PFN_vkCreateDevice>(find(instance, "vkCreateDevice"));
  VkResult result = create(physical, info, callbacks, created);
  FIND(next_device, *created, AllocateMemory);
  FIND(next_device, *created, FreeMemory);
  FIND(next_device, *created, QueueSubmit2);
  FIND(next_device, *created, WaitSemaphores);
  return result;
}

void GetPhysicalDeviceProperties(VkPhysicalDevice physical, VkPhysicalDeviceProperties* found) {
  next.GetPhysicalDeviceProperties(physical, found);
  if (Faulty("old")) found->apiVersion = VK_API_VERSION_1_2;
}

void GetPhysicalDeviceFeatures2(VkPhysicalDevice physical, VkPhysicalDeviceFeatures2* found) {
  next.GetPhysicalDeviceFeatures2(physical, found);
  for (auto* next = static_cast<VkBaseOutStructure*>(found->pNext); next; next = next->pNext) {
    if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES &&
        Faulty("no-float16")) {
      reinterpret_cast<VkPhysicalDeviceVulkan12Features*>(next)->shaderFloat16 = VK_FALSE;
    }
  }
}

VkResult AllocateMemory(VkDevice on, const VkMemoryAllocateInfo* info,
                        const VkAllocationCallbacks* callbacks, VkDeviceMemory* memory) {
  std::lock_guard<std::mutex> lock(mutex);
  uint64_t limit = 0, total = info->allocationSize;
  for (const auto& [_, size] : allocated) total += size;
  if (Faulty("memory", &limit) && total > limit) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  VkResult result = next.AllocateMemory(on, info, callbacks, memory);
  if (result == VK_SUCCESS) allocated[*memory] = info->allocationSize;
  return result;
}

void FreeMemory(VkDevice on, VkDeviceMemory memory, const VkAllocationCallbacks* callbacks) {
  std::lock_guard<std::mutex> lock(mutex);
  allocated.erase(memory);
  next.FreeMemory(on, memory, callbacks);
}

VkResult QueueSubmit2(VkQueue queue, uint32_t count, const VkSubmitInfo2* infos, VkFence fence) {
  ++submissions;
  if (Lost()) return VK_ERROR_DEVICE_LOST;
  return next.QueueSubmit2(queue, count, infos, fence);
}

VkResult WaitSemaphores(VkDevice on, const VkSemaphoreWaitInfo* info, uint64_t timeout) {
  if (Lost()) return VK_ERROR_DEVICE_LOST;
  return next.WaitSemaphores(on, info, timeout);
}

PFN_vkVoidFunction GetDeviceProcAddr(VkDevice on, const char* name);
PFN_vkVoidFunction GetInstanceProcAddr(VkInstance of, const char* name);

PFN_vkVoidFunction Own(const char* name) {
  static const std::map<std::string, PFN_vkVoidFunction> own = {
#define OWN(function) {"vk" #function, reinterpret_cast<PFN_vkVoidFunction>(function)}
      OWN(CreateInstance), OWN(CreateDevice), OWN(GetPhysicalDeviceProperties),
      OWN(GetPhysicalDeviceFeatures2), OWN(AllocateMemory), OWN(FreeMemory), OWN(QueueSubmit2),
      OWN(WaitSemaphores), OWN(GetDeviceProcAddr), OWN(GetInstanceProcAddr),
#undef OWN
  };
  auto found = own.find(name);
  return found == own.end() ? nullptr : found->second;
}

PFN_vkVoidFunction GetDeviceProcAddr(VkDevice on, const char* name) {
  PFN_vkVoidFunction own = Own(name);
  return own != nullptr ? own : next_device(on, name);
}

PFN_vkVoidFunction GetInstanceProcAddr(VkInstance of, const char* name) {
  PFN_vkVoidFunction own = Own(name);
  return own != nullptr || next_instance == nullptr ? own : next_instance(of, name);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) VkResult
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface* interface) {
  interface->loaderLayerInterfaceVersion = 2;
  interface->pfnGetInstanceProcAddr = GetInstanceProcAddr;
  interface->pfnGetDeviceProcAddr = GetDeviceProcAddr;
  interface->pfnGetPhysicalDeviceProcAddr = nullptr;
  return VK_SUCCESS;
}
