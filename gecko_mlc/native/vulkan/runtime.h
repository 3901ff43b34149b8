// The devices of this process, by their numbers.

#ifndef GECKO_MLC_NATIVE_VULKAN_RUNTIME_H_
#define GECKO_MLC_NATIVE_VULKAN_RUNTIME_H_

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "physical_device.h"

namespace gecko_mlc::vulkan {

// More are not numbered.
constexpr int kMaxDevices = 16;

class Runtime {
 public:
  // The process's own, which outlives all that uses it; its devices are given back at exit.
  static Runtime& Global();

  // Devices that can be used; 0 where Vulkan is missing.
  int count() const { return static_cast<int>(usable_.size()); }
  // Throws with what was found and what to do unless ``index`` can be used.
  void CheckIndex(int index) const;
  const PhysicalDevice& physical(int index) const;
  // Open it at its first use. Throws as CheckIndex does.
  Device& device(int index);
  // The same, to hold on to.
  std::shared_ptr<Device> shared_device(int index);
  // The device if it is open, or null.
  Device* open_device(int index) const;

 private:
  Runtime();
  void Close();

  std::string problem_;
  std::shared_ptr<const Instance> instance_;
  std::vector<std::shared_ptr<const PhysicalDevice>> usable_;
  std::vector<std::string> unusable_;
  std::mutex mutex_;
  std::array<std::shared_ptr<Device>, kMaxDevices> devices_;
  // The same devices, for a look without the lock.
  std::array<std::atomic<Device*>, kMaxDevices> open_{};
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_RUNTIME_H_
