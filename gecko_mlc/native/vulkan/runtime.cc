#include "runtime.h"

#include <tvm/ffi/error.h>

#include <cstdlib>
#include <utility>

namespace gecko_mlc::vulkan {

Runtime& Runtime::Global() {
  static Runtime* runtime = new Runtime();
  return *runtime;
}

Runtime::Runtime() {
  try {
    instance_ = std::make_shared<const Instance>();
    for (auto& device : EnumerateDevices(*instance_)) {
      if (!device->problem.empty()) {
        unusable_.push_back(std::string(device->name()) + " " + device->problem);
      } else if (count() < kMaxDevices) {
        usable_.push_back(std::move(device));
      }
    }
  } catch (const tvm::ffi::Error& error) {
    problem_ = error.message();
  }
}

void Runtime::CheckIndex(int index) const {
  if (!problem_.empty()) TVM_FFI_THROW(RuntimeError) << problem_;
  if (index >= 0 && index < count()) return;
  std::string found;
  for (int i = 0; i < count(); ++i) {
    found += "\n  vulkan:" + std::to_string(i) + " " + usable_[i]->name();
  }
  for (const std::string& reason : unusable_) found += "\n  unusable: " + reason;
  TVM_FFI_THROW(RuntimeError) << "no device vulkan:" << index << "; Vulkan's devices here:"
                              << found;
}

const PhysicalDevice& Runtime::physical(int index) const {
  CheckIndex(index);
  return *usable_[index];
}

Device& Runtime::device(int index) {
  if (Device* device = open_device(index)) return *device;
  return *shared_device(index);
}

Device* Runtime::open_device(int index) const {
  if (index < 0 || index >= kMaxDevices) return nullptr;
  return open_[index].load(std::memory_order_acquire);
}

std::shared_ptr<Device> Runtime::shared_device(int index) {
  CheckIndex(index);
  std::lock_guard lock(mutex_);
  TVM_FFI_CHECK(instance_ != nullptr, RuntimeError) << "the process is at its end";
  if (devices_[index] == nullptr) {
    devices_[index] = std::make_shared<Device>(instance_, usable_[index], index);
    open_[index].store(devices_[index].get(), std::memory_order_release);
    // Drivers have handlers of their own, some from when a device was opened; ours must come before
    // them, and the latest comes first.
    std::atexit([] { Global().Close(); });
  }
  return devices_[index];
}

void Runtime::Close() {
  std::lock_guard lock(mutex_);
  for (int i = 0; i < kMaxDevices; ++i) {
    open_[i].store(nullptr, std::memory_order_release);
    if (devices_[i] == nullptr) continue;
    // Modules and graphs that are still there keep the device, but nothing shall run any more. To
    // throw is no longer possible: what tvm_ffi needs for that has gone already.
    std::lock_guard device_lock(devices_[i]->mutex());
    devices_[i]->queue().Abandon();
    devices_[i]->pipeline_cache().Save();
  }
  devices_ = {};
  instance_.reset();
}

}  // namespace gecko_mlc::vulkan
