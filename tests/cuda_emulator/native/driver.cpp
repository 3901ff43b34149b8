// The functions of libcuda.so.1 that TVM's CUDA runtime uses.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dependent_launch.h"
#include "errors.h"
#include "scheduler.h"
#include "stream.h"
#include "tensor_map.h"

namespace emulator {

int captures = 0;
int compute_capability = 80;

int submit(Stream* stream, Work work) {
  if (stream != nullptr && stream->capture != nullptr) {
    stream->capture->nodes.push_back(std::move(work));
    return kSuccess;
  }
  // The default stream waits for the captured ones, which cannot be.
  if (stream == nullptr && captures != 0) return kCaptureImplicit;
  return work();
}

namespace {

std::atomic<Order> order{Order::kForward};
std::mutex launching;
std::string launch_failure;

// Everything a launch needs, kept for a graph's replays.
class OwnedLaunch {
 public:
  explicit OwnedLaunch(const Launch& launch) : launch_(launch) {
    const Kernel& kernel = *launch.kernel;
    for (size_t i = 0; i < kernel.arguments; ++i) {
      const size_t size = kernel.argument_sizes[i];
      values_.push_back(std::make_unique<Value[]>(size / sizeof(Value) + 1));
      std::memcpy(values_.back().get(), launch.arguments[i], size);
      pointers_.push_back(values_.back().get());
    }
  }

  int operator()() {
    launch_.arguments = pointers_.data();
    const std::lock_guard<std::mutex> lock(launching);
    const std::string failure = run_accounted(launch_, [this] { return run(launch_, order); });
    if (failure.empty()) return kSuccess;
    set_launch_failure(failure);
    return kLaunchFailed;
  }

 private:
  struct alignas(64) Value {
    unsigned char bytes[64];
  };
  Launch launch_;
  std::vector<std::unique_ptr<Value[]>> values_;
  std::vector<void*> pointers_;
};

// What cuModuleLoadData gets: a tag, the size of a shared object, and the object.
constexpr char kTag[] = "GECKOEMU";

struct Module {
  void* library;
};

}  // namespace

void set_launch_failure(const std::string& message) { launch_failure = message; }

const char* error_text(int error) {
  static thread_local std::string text;
  switch (error) {
    case kSuccess: return "no error";
    case kInvalidValue: return "invalid value";
    case kOutOfMemory: return "out of memory";
    case kInvalidImage: return "not a module compiled for the emulated device";
    case kNotFound: return "no such function";
    case kLaunchFailed: text = "launch failed: " + launch_failure; return text.c_str();
    case kCaptureUnsupported: return "not allowed while a stream is captured";
    case kCaptureImplicit: return "the default stream depends on a stream that is captured";
    default: return "unknown error";
  }
}

}  // namespace emulator

using namespace emulator;

struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    Index cluster;
    int programmatic;
    char bytes[64];
  } value;
};

constexpr int kClusterDimension = 4, kProgrammaticStreamSerialization = 6;

struct LaunchConfig {
  Index grid, block;
  unsigned shared_bytes;
  Stream* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};

extern "C" {

// 0: forward, 1: reverse, 2: shuffled.
void emulator_set_order(int value) { order = static_cast<Order>(value); }

void emulator_set_capability(int value) { compute_capability = value; }

int cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, length, "CUDA emulated on the CPU");
  return kSuccess;
}

int cuGetErrorName(int error, const char** name) {
  *name = error_text(error);
  return kSuccess;
}

int cuGetErrorString(int error, const char** text) {
  *text = error_text(error);
  return kSuccess;
}

int cuModuleLoadData(Module** module, const void* image) {
  const char* bytes = static_cast<const char*>(image);
  if (std::memcmp(bytes, kTag, 8) != 0) return kInvalidImage;
  uint64_t size = 0;
  std::memcpy(&size, bytes + 8, sizeof size);
  // The loader knows a library by its name, so that no two may share one.
  const char* folder = std::getenv("TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/emulated-XXXXXX";
  const int descriptor = mkstemp(path.data());
  std::FILE* const file = descriptor >= 0 ? fdopen(descriptor, "wb") : nullptr;
  if (file == nullptr) return kOutOfMemory;
  std::fwrite(bytes + 16, 1, size, file);
  std::fclose(file);
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  unlink(path.c_str());
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return kInvalidImage;
  }
  *module = new Module{library};
  return kSuccess;
}

// A graph may still hold the module's kernels, so that the code stays.
int cuModuleUnload(Module* module) {
  delete module;
  return kSuccess;
}

int cuModuleGetFunction(const Kernel** function, Module* module, const char* name) {
  *function = static_cast<const Kernel*>(
      dlsym(module->library, (std::string("emulator_kernel_") + name).c_str()));
  return *function != nullptr ? kSuccess : kNotFound;
}

int cuFuncSetAttribute(const Kernel*, int, int) { return kSuccess; }

int cuTensorMapEncodeTiled(void* encoded, int type, unsigned rank, void* address,
                           const uint64_t* extents, const uint64_t* strides, const uint32_t* box,
                           const uint32_t* element_strides, int interleave, int swizzle, int,
                           int fill_nan) {
  constexpr uint8_t kElementSizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  constexpr unsigned kSpans[] = {0, 32, 64, 128};
  if (type < 0 || type > 12 || rank < 1 || rank > 5 || interleave != 0 || swizzle < 0 ||
      swizzle > 3 || reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    return kInvalidValue;
  }
  TensorMap map{};
  map.address = static_cast<unsigned char*>(address);
  map.rank = rank;
  map.element_size = kElementSizes[type];
  map.swizzle = swizzle;
  map.fill_nan = fill_nan;
  for (unsigned i = 0; i < rank; ++i) {
    if (box[i] == 0 || box[i] > 256) return kInvalidValue;
    map.extents[i] = extents[i];
    map.box[i] = box[i];
    map.element_strides[i] = element_strides[i];
    if (i + 1 < rank) map.strides[i] = strides[i];
    if (i + 1 < rank && strides[i] % 16 != 0) return kInvalidValue;
  }
  const unsigned row = box[0] * map.element_size;
  if (row % 16 != 0 || (swizzle != 0 && row > kSpans[swizzle])) return kInvalidValue;
  std::memset(encoded, 0, 128);
  std::memcpy(encoded, &map, sizeof map);
  return kSuccess;
}

int cuLaunchKernelEx(const LaunchConfig* config, const Kernel* kernel, void** arguments, void**) {
  Launch launch{kernel,    arguments,           config->grid, config->block,
                {1, 1, 1}, config->shared_bytes, false};
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    const LaunchAttribute& attribute = config->attributes[i];
    if (attribute.id == kClusterDimension) launch.cluster = attribute.value.cluster;
    if (attribute.id == kProgrammaticStreamSerialization) {
      launch.dependent = attribute.value.programmatic != 0;
    }
  }
  const Index grid = launch.grid, cluster = launch.cluster;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
      launch.block.count() == 0 || launch.block.count() > kMaxThreads || cluster.count() > 16 ||
      grid.x % cluster.x != 0 || grid.y % cluster.y != 0 || grid.z % cluster.z != 0 ||
      kernel->static_shared + launch.dynamic_shared > kMaxShared) {
    return kInvalidValue;
  }
  return submit(config->stream,
                [owned = std::make_shared<OwnedLaunch>(launch)] { return (*owned)(); });
}

}  // extern "C"
