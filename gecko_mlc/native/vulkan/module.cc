// Modules of kind vulkan: kernels as SPIR-V, and what they need of a device.
//
// The bytes: "GKVK", uint32 version, uint64 length of a JSON text, the text, zeros up to a multiple
// of 4, then the kernels' SPIR-V one after the other. All numbers are little-endian. See
// gecko_mlc/vulkan for the text.

#include <tvm/ffi/cast.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "active_device.h"
#include "kernel.h"
#include "needs.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

namespace {

constexpr char kMagic[4] = {'G', 'K', 'V', 'K'};
constexpr uint32_t kVersion = 1;

template <typename T>
T Get(const json::Object& object, const char* key) {
  auto found = object.find(ffi::String(key));
  TVM_FFI_CHECK(found != object.end(), ValueError) << "a module of kind vulkan without " << key;
  return (*found).second.cast<T>();
}

Argument ArgumentOf(const std::string& type, uint32_t end) {
  uint32_t size = type == "address" || type == "int64" || type == "uint64" ? 8 : 4;
  Argument argument{Argument::Type::kInt, (end + size - 1) / size * size, size};
  if (type == "address") {
    argument.type = Argument::Type::kAddress;
  } else if (type == "float32") {
    argument.type = Argument::Type::kFloat;
  } else {
    TVM_FFI_CHECK(type == "int32" || type == "uint32" || type == "int64" || type == "uint64",
                  ValueError)
        << "a kernel's argument of type " << type;
  }
  return argument;
}

int LaunchDimension(const std::string& name) {
  static const char* names[] = {"blockIdx.x",  "blockIdx.y",  "blockIdx.z",
                                "threadIdx.x", "threadIdx.y", "threadIdx.z"};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return i;
  }
  TVM_FFI_THROW(ValueError) << "a kernel's launch parameter " << name;
  TVM_FFI_UNREACHABLE();
}

KernelDescription Describe(const std::string& name, const json::Object& row, const char* words,
                           uint64_t count) {
  KernelDescription kernel;
  kernel.name = name;
  auto offset = static_cast<uint64_t>(Get<int64_t>(row, "offset"));
  auto size = static_cast<uint64_t>(Get<int64_t>(row, "size"));
  if (offset > count || size > count - offset) {
    TVM_FFI_THROW(ValueError) << "kernel " << name << " is cut off";
  }
  kernel.code.resize(size);
  std::memcpy(kernel.code.data(), words + offset * 4, size * 4);
  auto threads = Get<json::Array>(row, "threads");
  for (int d = 0; d < 3; ++d) kernel.threads[d] = static_cast<uint32_t>(threads[d].cast<int64_t>());
  uint32_t end = 0;
  for (const ffi::Any& type : Get<json::Array>(row, "arguments")) {
    kernel.arguments.push_back(ArgumentOf(type.cast<std::string>(), end));
    end = kernel.arguments.back().offset + kernel.arguments.back().size;
  }
  kernel.block_size = (end + 7) / 8 * 8;
  TVM_FFI_CHECK(kernel.block_size <= kMaxBlock, ValueError)
      << "kernel " << name << " has " << kernel.arguments.size() << " arguments, "
      << kernel.block_size << " bytes; this runtime takes " << kMaxBlock;
  for (const ffi::Any& parameter : Get<json::Array>(row, "launch")) {
    kernel.launch.push_back(LaunchDimension(parameter.cast<std::string>()));
  }
  auto block = Get<std::string>(row, "block");
  TVM_FFI_CHECK(block == "push" || block == "memory", ValueError)
      << "kernel " << name << " has its arguments in " << block << ", wanted push or memory";
  kernel.in_memory = block == "memory";
  kernel.subgroup = static_cast<uint32_t>(Get<int64_t>(row, "subgroup"));
  return kernel;
}

class VulkanModule final : public ffi::ModuleObj {
 public:
  explicit VulkanModule(ffi::Bytes bytes) : bytes_(std::move(bytes)) { Read(); }

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::Bytes SaveToBytes() const final { return bytes_; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto self = ffi::GetObjectPtr<ffi::ModuleObj>(this);
    // A device's number: RuntimeError, saying why, unless the kernels run there.
    if (name == "check_device") {
      return ffi::Function::FromTyped([this, self](int index) { CheckDevice(index); });
    }
    auto found = kernels_.find(name);
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked([this, self, kernel = found->second.get()](
                                         const ffi::AnyView* args, int32_t count, ffi::Any*) {
      int device = ActiveDevice();
      if (!checked_[device].load(std::memory_order_acquire)) CheckDevice(device);
      kernel->Launch(ffi::PackedArgs(args, count));
    });
  }

 private:
  void Read() {
    const char* data = bytes_.data();
    uint64_t size = bytes_.size(), length = 0;
    uint32_t version = 0;
    if (size < 16 || std::memcmp(data, kMagic, sizeof(kMagic)) != 0) {
      TVM_FFI_THROW(ValueError) << "a module of kind vulkan that gecko-mlc did not make";
    }
    std::memcpy(&version, data + 4, sizeof(version));
    std::memcpy(&length, data + 8, sizeof(length));
    if (version != kVersion) {
      TVM_FFI_THROW(ValueError)
          << "a module of kind vulkan of version " << version << ", this runtime reads "
          << kVersion << ": compile the library again with this version of gecko-mlc";
    }
    uint64_t start = 16 + (length + 3) / 4 * 4;
    if (length > size || start > size) {
      TVM_FFI_THROW(ValueError) << "a module of kind vulkan that is cut off";
    }
    auto text = json::Parse(ffi::String(data + 16, length)).cast<json::Object>();
    needs_ = Needs(Get<json::Object>(text, "needs"));
    for (const auto& [key, row] : Get<json::Object>(text, "kernels")) {
      auto name = key.cast<std::string>();
      kernels_.emplace(name, std::make_unique<Kernel>(Describe(name, row.cast<json::Object>(),
                                                               data + start, (size - start) / 4)));
    }
  }

  void CheckDevice(int index) {
    needs_.Check(Runtime::Global().physical(index), index);
    checked_[index].store(true, std::memory_order_release);
  }

  ffi::Bytes bytes_;
  Needs needs_;
  std::unordered_map<std::string, std::unique_ptr<Kernel>> kernels_;
  std::array<std::atomic<bool>, kMaxDevices> checked_{};
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef().def(
      "ffi.Module.load_from_bytes.vulkan",
      [](const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<VulkanModule>(bytes)); });
}

}  // namespace gecko_mlc::vulkan
