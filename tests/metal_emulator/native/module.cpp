// A module of kind "metal": kernels compiled for the CPU, launched as TVM's Metal runtime does.
#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "buffers.h"
#include "metal_threads.h"
#include "scheduler.h"

namespace emulator {

namespace {

namespace ffi = tvm::ffi;

std::atomic<Order> order{Order::kForward};
std::mutex launching;
std::set<std::string> launched;

// What a launch gives to the kernel: its buffers' memory, and last a buffer of its numbers.
class Function {
 public:
  // `types`: of the arguments, "handle" for buffers, which come first. `launch`: the dimension that
  // each number after the arguments gives.
  Function(std::string name, const Description* description, std::vector<std::string> types,
           std::vector<std::string> launch)
      : name_(std::move(name)), description_(description), launch_(std::move(launch)) {
    for (const std::string& type : types) {
      if (type == "handle") {
        TVM_FFI_CHECK(types_.empty(), ValueError) << name_ << ": a buffer after a number";
        ++buffers_;
      } else {
        types_.push_back(type);
      }
    }
    const unsigned wanted = buffers_ + !types_.empty();
    TVM_FFI_CHECK(description->buffers == wanted, ValueError)
        << name_ << " has " << description->buffers << " buffers, launched with " << wanted;
  }

  void operator()(ffi::PackedArgs arguments, ffi::Any*) const {
    std::vector<void*> given;
    for (size_t i = 0; i < buffers_; ++i) {
      void* const handle = arguments[i].cast<void*>();
      given.push_back(contents(handle));
      TVM_FFI_CHECK(given.back() != nullptr, ValueError)
          << name_ << ": argument " << i << ", " << handle << ", is no buffer";
    }
    std::vector<uint64_t> numbers;
    for (size_t i = 0; i < types_.size(); ++i) {
      numbers.push_back(word(types_[i], arguments[buffers_ + i]));
    }
    given.push_back(numbers.data());

    Index grid{1, 1, 1}, block{1, 1, 1};
    for (size_t i = 0; i < launch_.size(); ++i) {
      const auto size = arguments[buffers_ + types_.size() + i].cast<int64_t>();
      // The runtime takes no dimension of 0.
      if (size > 0) dimension(launch_[i], grid, block) = static_cast<unsigned>(size);
    }
    TVM_FFI_CHECK(block.count() <= kMaxThreads, ValueError)
        << name_ << " with " << block.count() << " threads a threadgroup";
    const Kernel run_as{description_->invoke, nullptr, given.size(),
                        description_->threadgroup_bytes};
    const Launch launch{&run_as, given.data(), grid, block, {1, 1, 1}, 0, false};
    const std::lock_guard<std::mutex> lock(launching);
    launched.insert(name_);
    const std::string failure = run(launch, order);
    TVM_FFI_CHECK(failure.empty(), RuntimeError) << "launch of " << name_ << " failed: " << failure;
  }

 private:
  static uint64_t word(const std::string& type, ffi::AnyView argument) {
    uint64_t bits = 0;
    if (type == "float32") {
      const auto value = static_cast<float>(argument.cast<double>());
      std::memcpy(&bits, &value, sizeof value);
    } else if (type == "int32" || type == "uint32") {
      bits = static_cast<uint32_t>(argument.cast<int64_t>());
    } else {
      TVM_FFI_CHECK(type == "int64", ValueError) << "the runtime passes no " << type;
      bits = static_cast<uint64_t>(argument.cast<int64_t>());
    }
    return bits;
  }

  unsigned& dimension(const std::string& tag, Index& grid, Index& block) const {
    Index& index = tag.rfind("blockIdx.", 0) == 0 ? grid : block;
    TVM_FFI_CHECK(&index == &grid || tag.rfind("threadIdx.", 0) == 0, ValueError)
        << name_ << ": no launch parameter " << tag;
    const char axis = tag.back();
    return axis == 'x' ? index.x : axis == 'y' ? index.y : index.z;
  }

  std::string name_;
  const Description* description_;
  size_t buffers_ = 0;
  std::vector<std::string> types_;  // of the numbers
  std::vector<std::string> launch_;
};

class Module final : public ffi::ModuleObj {
 public:
  explicit Module(void* library) : library_(library) {}

  void add(std::string name, std::vector<std::string> types, std::vector<std::string> launch) {
    const void* const found = dlsym(library_, ("metal_kernel_" + name).c_str());
    TVM_FFI_CHECK(found != nullptr, ValueError) << "no kernel " << name;
    functions_.Set(name, ffi::Function::FromPacked(
                             Function(name, static_cast<const Description*>(found),
                                      std::move(types), std::move(launch))));
  }

  const char* kind() const final { return "metal"; }
  // As of the module that the runtime makes on a Mac; this one is not saved.
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    return functions_.Get(name);
  }

 private:
  void* library_;
  ffi::Map<ffi::String, ffi::Function> functions_;
};

std::vector<std::string> strings(const ffi::Array<ffi::String>& array) {
  return {array.begin(), array.end()};
}

// A module of the kernels that the shared object at `path` describes; of each its name, the types
// of its arguments and its launch parameters.
ffi::Module load(const ffi::String& path, const ffi::Array<ffi::String>& names,
                 const ffi::Array<ffi::Array<ffi::String>>& types,
                 const ffi::Array<ffi::Array<ffi::String>>& launch) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TVM_FFI_CHECK(library != nullptr, RuntimeError) << dlerror();
  auto module = ffi::make_object<Module>(library);
  for (size_t i = 0; i < names.size(); ++i) {
    module->add(names[i], strings(types[i]), strings(launch[i]));
  }
  return ffi::Module(module);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("metal_emulator.load", load)
      .def("metal_emulator.launched",
           [] {
             ffi::Array<ffi::String> names;
             for (const std::string& name : launched) names.push_back(name);
             launched.clear();
             return names;
           })
      .def("metal_emulator.saved", [](const ffi::Module& module) { return module->SaveToBytes(); })
      .def("metal_emulator.set_order", [](int value) { order = static_cast<Order>(value); });
}

}  // namespace

// What threads of a kernel ask for.

Position position() {
  const Index group = current->block->index, own = current->index;
  return {{group.x, group.y, group.z}, {own.x, own.y, own.z}};
}

unsigned char* threadgroup_memory() { return current->block->shared; }

uint simd_lane() { return current->lane; }

void simd_operation(void (*operation)(void* const*, uint), void* operand) {
  collective(~0u, operation, operand);
}

void threadgroup_barrier(int line) {
  const unsigned threads = current->launch->block.count();
  if (barrier(0, threads, true, line) != static_cast<int>(threads) * line) {
    fail("threads of a threadgroup meet at different barriers");
  }
}

void fault(const char* message) { fail(message); }

}  // namespace emulator
