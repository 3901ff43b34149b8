// Vulkan as a device of TVM: device_api.vulkan. TVM's data pointers are device addresses.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "active_device.h"
#include "capture.h"
#include "copy.h"
#include "runtime.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

// All work is in one queue. A stream is a point in it, the one that SyncStreamFromTo set: to wait
// for the stream is to wait for that, not for what came later.
struct Stream {
  uint64_t submission = 0;
};

thread_local int active_device = 0;

uint64_t Address(const void* pointer, size_t offset) {
  return reinterpret_cast<uintptr_t>(pointer) + offset;
}

uint64_t DeviceMemory(const VkPhysicalDeviceMemoryProperties& memory) {
  uint64_t largest = 0;
  for (uint32_t i = 0; i < memory.memoryHeapCount; ++i) {
    if (memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) {
      largest = std::max<uint64_t>(largest, memory.memoryHeaps[i].size);
    }
  }
  return largest;
}

class DeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(tvm::Device dev) final {
    Runtime::Global().CheckIndex(dev.device_id);
    active_device = dev.device_id;
  }

  void GetAttr(tvm::Device dev, tvm::runtime::DeviceAttrKind kind, ffi::Any* rv) final {
    Runtime& runtime = Runtime::Global();
    if (kind == tvm::runtime::kExist) {
      *rv = dev.device_id >= 0 && dev.device_id < runtime.count();
      return;
    }
    const PhysicalDevice& physical = runtime.physical(dev.device_id);
    const VkPhysicalDeviceLimits& limits = physical.limits();
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *rv = static_cast<int64_t>(limits.maxComputeWorkGroupInvocations);
        break;
      case tvm::runtime::kWarpSize:
        *rv = static_cast<int64_t>(physical.vulkan11.subgroupSize);
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *rv = static_cast<int64_t>(limits.maxComputeSharedMemorySize);
        break;
      case tvm::runtime::kComputeVersion:
        *rv = VersionText(physical.properties.properties.apiVersion);
        break;
      case tvm::runtime::kDeviceName:
        *rv = std::string(physical.name());
        break;
      case tvm::runtime::kMaxThreadDimensions: {
        const uint32_t* size = limits.maxComputeWorkGroupSize;
        *rv = "[" + std::to_string(size[0]) + ", " + std::to_string(size[1]) + ", " +
              std::to_string(size[2]) + "]";
        break;
      }
      case tvm::runtime::kDriverVersion:
        *rv = std::string(physical.vulkan12.driverInfo);
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *rv = static_cast<int64_t>(DeviceMemory(physical.memory));
        break;
      default:
        // Vulkan does not tell.
        break;
    }
  }

  void* AllocDataSpace(tvm::Device dev, size_t nbytes, size_t alignment, DLDataType) final {
    Device& device = Runtime::Global().device(dev.device_id);
    std::lock_guard lock(device.mutex());
    // Tensors without elements have addresses too.
    uint64_t size = std::max<size_t>(nbytes, 1);
    return reinterpret_cast<void*>(device.Allocate(MemoryUse::kTensors, size, alignment));
  }

  void FreeDataSpace(tvm::Device dev, void* ptr) final {
    // At the end of the process a tensor may outlive its device.
    if (Device* device = Runtime::Global().open_device(dev.device_id)) {
      std::lock_guard lock(device->mutex());
      device->Free(MemoryUse::kTensors, Address(ptr, 0));
    }
  }

  TVMStreamHandle CreateStream(tvm::Device) final { return new Stream(); }

  void FreeStream(tvm::Device, TVMStreamHandle stream) final {
    delete static_cast<Stream*>(stream);
  }

  void StreamSync(tvm::Device dev, TVMStreamHandle stream) final {
    Device& device = Runtime::Global().device(dev.device_id);
    TVM_FFI_CHECK(Capture::Of(device) == nullptr, RuntimeError)
        << "waiting for device " << device.Title() << " inside a graph, which does not run yet";
    auto* point = static_cast<Stream*>(stream);
    if (point != nullptr && point->submission != 0) {
      device.Finish(point->submission);
    } else {
      device.Finish();
    }
  }

  void SyncStreamFromTo(tvm::Device dev, TVMStreamHandle from,
                        TVMStreamHandle to) final {
    if (to == nullptr) return;
    Device& device = Runtime::Global().device(dev.device_id);
    std::lock_guard lock(device.mutex());
    auto* source = static_cast<Stream*>(from);
    bool set = source != nullptr && source->submission != 0;
    static_cast<Stream*>(to)->submission = set ? source->submission : device.queue().Submit();
  }

  // The address of an element is its tensor's plus an offset.
  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t num_bytes, tvm::Device dev_from, tvm::Device dev_to, DLDataType,
                      TVMStreamHandle) final {
    if (num_bytes == 0) return;
    Runtime& runtime = Runtime::Global();
    uint64_t source = Address(from, from_offset), target = Address(to, to_offset);
    if (dev_from.device_type == kDLCPU) {
      CopyFromHost(runtime.device(dev_to.device_id), reinterpret_cast<const void*>(source), target,
                   num_bytes);
    } else if (dev_to.device_type == kDLCPU) {
      CopyToHost(runtime.device(dev_from.device_id), source, reinterpret_cast<void*>(target),
                 num_bytes);
    } else if (dev_from.device_type != dev_to.device_type) {
      TVM_FFI_THROW(ValueError) << "cannot copy between device vulkan and another kind of device: "
                                << "copy to the host first";
    } else if (dev_from.device_id == dev_to.device_id) {
      CopyOnDevice(runtime.device(dev_from.device_id), source, target, num_bytes);
    } else {
      CopyBetween(runtime.device(dev_from.device_id), source, runtime.device(dev_to.device_id),
                  target, num_bytes);
    }
  }
};

// Memory of the host that a device copies to and from by itself.
struct HostMemory {
  std::shared_ptr<Device> device;
  std::shared_ptr<Allocation> allocation;

  void AllocData(DLTensor* tensor) {
    std::lock_guard lock(device->mutex());
    size_t size = std::max<size_t>(ffi::GetDataSize(*tensor), 1);
    allocation = std::make_shared<Allocation>(*device, MemoryUse::kStaging, size);
    tensor->data = allocation->host();
  }
  void FreeData(DLTensor*) {
    std::lock_guard lock(device->mutex());
    device->queue().Retire(std::move(allocation));
    allocation.reset();
  }
};

// A tensor of the host for copies to and from a device that do not wait. Whoever touches it knows
// when they are over.
ffi::Tensor HostTensor(int index, const ffi::Shape& shape, DLDataType dtype) {
  return ffi::Tensor::FromNDAlloc(HostMemory{Runtime::Global().shared_device(index), nullptr},
                                  shape, dtype, DLDevice{kDLCPU, 0});
}

}  // namespace

int ActiveDevice() { return active_device; }

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("device_api.vulkan",
           [] {
             static DeviceAPI* api = new DeviceAPI();
             return static_cast<void*>(api);
           })
      .def("gecko_mlc.vulkan.host_tensor", HostTensor);
}

}  // namespace gecko_mlc::vulkan
