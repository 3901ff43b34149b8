// TVM's interface to a Metal device, as its own runtime on a Mac has it, for the CPU's memory.
#include <sys/mman.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>

#include "buffers.h"
#include "memory.h"

namespace emulator {
namespace {

namespace ffi = tvm::ffi;
using tvm::Device;
using tvm::runtime::DeviceAPI;
using tvm::runtime::DeviceAttrKind;

std::mutex mutex;

std::unordered_map<const void*, unsigned char*>& buffers() {
  static auto* all = new std::unordered_map<const void*, unsigned char*>();
  return *all;
}

// Addresses that stand for buffers, none used twice, in memory that cannot be touched.
void* new_handle() {
  constexpr size_t kHandles = size_t{1} << 30, kStep = 256;
  static auto* const first =
      static_cast<unsigned char*>(mmap(nullptr, kHandles * kStep, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  static size_t number = 0;
  if (first == MAP_FAILED || number == kHandles) throw std::bad_alloc();
  return first + kStep * number++;
}

class EmulatedMetal final : public DeviceAPI {
 public:
  void SetDevice(Device) final {}

  // Other attributes have no value on a Mac either.
  void GetAttr(Device device, DeviceAttrKind kind, ffi::Any* result) final {
    if (kind == tvm::runtime::kExist) *result = device.device_id == 0;
    if (kind == tvm::runtime::kMaxThreadsPerBlock) *result = 1024;
    if (kind == tvm::runtime::kWarpSize) *result = 32;
  }

  void* AllocDataSpace(Device, size_t bytes, size_t, DLDataType) final {
    const std::lock_guard<std::mutex> lock(mutex);
    void* const handle = new_handle();
    buffers()[handle] = static_cast<unsigned char*>(allocate(bytes));
    return handle;
  }

  void FreeDataSpace(Device, void* handle) final {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = buffers().find(handle);
    TVM_FFI_CHECK(found != buffers().end(), ValueError) << handle << " is no buffer";
    release(found->second);
    buffers().erase(found);
  }

  // Work is done when it is given.
  void StreamSync(Device, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t bytes, Device from_device, Device to_device, DLDataType,
                      TVMStreamHandle) final {
    std::memcpy(memory(to, to_device) + to_offset,
                memory(const_cast<void*>(from), from_device) + from_offset, bytes);
  }

 private:
  static unsigned char* memory(void* pointer, Device device) {
    TVM_FFI_CHECK(device.device_type == kDLMetal || device.device_type == kDLCPU, ValueError)
        << "a Metal device copies to and from the CPU's memory and its own, not device type "
        << device.device_type;
    if (device.device_type == kDLCPU) return static_cast<unsigned char*>(pointer);
    unsigned char* const found = contents(pointer);
    TVM_FFI_CHECK(found != nullptr, ValueError) << pointer << " is no buffer";
    return found;
  }
};

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef().def_packed("device_api.metal", [](ffi::PackedArgs, ffi::Any* api) {
    static auto* const device = new EmulatedMetal();
    *api = static_cast<void*>(static_cast<DeviceAPI*>(device));
  });
}

}  // namespace

unsigned char* contents(const void* handle) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = buffers().find(handle);
  return found == buffers().end() ? nullptr : found->second;
}

}  // namespace emulator
