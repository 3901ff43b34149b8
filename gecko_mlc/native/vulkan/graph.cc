// Graphs of TVM's virtual machine: the kernels of a function recorded once and submitted again.
//
// gecko_mlc.vulkan.run_or_capture and get_cached_alloc take what vm.builtin.cuda_graph's functions
// of these names take, and mean the same.

#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/vm/vm.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "capture.h"
#include "queue.h"
#include "runtime.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;
namespace vm = tvm::runtime::vm;

namespace {

// Commands that can be submitted any number of times.
class Graph {
 public:
  explicit Graph(std::shared_ptr<Device> device)
      : device_(std::move(device)),
        pool_(std::make_shared<CommandPool>(*device_)),
        recording_(std::make_shared<Recording>(*device_, pool_->Take(), true)) {}

  ~Graph() {
    // A submission may be under way; the pool goes last.
    std::lock_guard lock(device_->mutex());
    device_->queue().Retire(std::move(recording_));
    device_->queue().Retire(std::move(pool_));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  Device& device() { return *device_; }
  Recording& recording() { return *recording_; }

  void Submit() {
    std::lock_guard lock(device_->mutex());
    device_->CheckAlive();
    device_->queue().Submit(recording_->buffer());
  }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<CommandPool> pool_;
  std::shared_ptr<Recording> recording_;
};

// The number of the Vulkan device that a virtual machine runs on.
int DeviceOf(const vm::VirtualMachine& machine) {
  for (const tvm::Device& device : machine.devices) {
    if (device.device_type == kDLVulkan) return device.device_id;
  }
  TVM_FFI_THROW(RuntimeError) << "a graph for device vulkan in a virtual machine without one";
  TVM_FFI_UNREACHABLE();
}

struct Captured {
  std::unique_ptr<Graph> graph;
  // What the function returned: tensors that the graph writes each time it runs.
  ffi::ObjectRef result;
};

}  // namespace

// The graphs of one virtual machine, and the memory that they work in.
class GraphsNode : public vm::VMExtensionNode {
 public:
  // Run ``function`` on ``arguments``, which are the same in every call with this ``entry`` and
  // ``shape``: the first call records it.
  ffi::ObjectRef RunOrCapture(vm::VirtualMachine* machine, const ffi::ObjectRef& function,
                              const ffi::Array<ffi::Any>& arguments, int64_t entry,
                              const std::vector<int64_t>& shape) {
    auto key = std::make_pair(entry, shape);
    auto found = captured_.find(key);
    if (found == captured_.end()) {
      found = captured_.emplace(std::move(key), Record(machine, function, arguments)).first;
    }
    found->second.graph->Submit();
    return found->second.result;
  }

  ffi::ObjectRef GetCachedAlloc(vm::VirtualMachine* machine, const ffi::ObjectRef& function,
                                int64_t entry) {
    auto found = allocated_.find(entry);
    if (found == allocated_.end()) {
      ffi::Any result;
      machine->InvokeClosurePacked(function, ffi::PackedArgs(nullptr, 0), &result);
      found = allocated_.emplace(entry, result.cast<ffi::ObjectRef>()).first;
    }
    return found->second;
  }

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("gecko_mlc.vulkan.Graphs", GraphsNode, vm::VMExtensionNode);

 private:
  static Captured Record(vm::VirtualMachine* machine, const ffi::ObjectRef& function,
                         const ffi::Array<ffi::Any>& arguments) {
    std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    auto graph = std::make_unique<Graph>(Runtime::Global().shared_device(DeviceOf(*machine)));
    ffi::Any result;
    {
      Capture capture(graph->device(), graph->recording());
      machine->InvokeClosurePacked(
          function, ffi::PackedArgs(views.data(), static_cast<int32_t>(views.size())), &result);
    }
    graph->recording().End();
    return {std::move(graph), result.cast<ffi::ObjectRef>()};
  }

  std::map<std::pair<int64_t, std::vector<int64_t>>, Captured> captured_;
  std::map<int64_t, ffi::ObjectRef> allocated_;
};

class Graphs : public vm::VMExtension {
 public:
  static Graphs Create() { return Graphs(ffi::make_object<GraphsNode>()); }

  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(Graphs, vm::VMExtension, GraphsNode);
};

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def_packed("gecko_mlc.vulkan.run_or_capture",
                  [](ffi::PackedArgs args, ffi::Any* rv) {
                    TVM_FFI_CHECK(args.size() == 4 || args.size() == 5, TypeError)
                        << "run_or_capture takes 4 or 5 arguments, found " << args.size();
                    vm::VirtualMachine* machine = vm::VirtualMachine::GetContextPtr(args[0]);
                    std::vector<int64_t> shape;
                    if (args.size() == 5) {
                      auto values = args[4].cast<ffi::Shape>();
                      shape.assign(values.begin(), values.end());
                    }
                    *rv = machine->GetOrCreateExtension<Graphs>()->RunOrCapture(
                        machine, args[1].cast<ffi::ObjectRef>(),
                        args[2].cast<ffi::Array<ffi::Any>>(), args[3].cast<int64_t>(), shape);
                  })
      .def_packed("gecko_mlc.vulkan.get_cached_alloc", [](ffi::PackedArgs args, ffi::Any* rv) {
        TVM_FFI_CHECK(args.size() == 3, TypeError)
            << "get_cached_alloc takes 3 arguments, found " << args.size();
        vm::VirtualMachine* machine = vm::VirtualMachine::GetContextPtr(args[0]);
        *rv = machine->GetOrCreateExtension<Graphs>()->GetCachedAlloc(
            machine, args[1].cast<ffi::ObjectRef>(), args[2].cast<int64_t>());
      });
}

}  // namespace gecko_mlc::vulkan
