// Matrix products by NVIDIA's cuBLASLt, opened where it is found at run time: building this needs
// no CUDA headers, and a machine without cuBLASLt does everything else.

#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

namespace gecko_mlc {

namespace ffi = tvm::ffi;

// The part of cuBLASLt's C interface that is used here, as NVIDIA documents it.
using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;
using Stream = void*;
enum DataType : int { kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14 };
constexpr int kComputeFloat32 = 68;  // float32 sums; float32 factors are not rounded to TF32
constexpr int kTransposed = 1;
enum MatmulDescAttribute : int { kTransposeA = 3 };
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,
  kReductionSchemeMask = 3,
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8
};
constexpr uint32_t kReduceInComputeType = 2;
struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_size;
  int status;
  float waves;
  int reserved[4];
};

struct CublasLt {
  int (*Create)(Handle*);
  const char* (*GetStatusString)(int);
  int (*MatmulDescCreate)(MatmulDesc*, int compute_type, int scale_type);
  int (*MatmulDescSetAttribute)(MatmulDesc, int attribute, const void*, size_t);
  int (*MatrixLayoutCreate)(MatrixLayout*, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*MatmulPreferenceCreate)(Preference*);
  int (*MatmulPreferenceDestroy)(Preference);
  int (*MatmulPreferenceSetAttribute)(Preference, int attribute, const void*, size_t);
  int (*MatmulAlgoGetHeuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c,
                                MatrixLayout d, Preference, int wanted, HeuristicResult*,
                                int* found);
  int (*Matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout,
                const void* b, MatrixLayout, const void* beta, const void* c, MatrixLayout,
                void* d, MatrixLayout, const Algorithm*, void* workspace, size_t, Stream);

  explicit CublasLt(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    TVM_FFI_CHECK(library != nullptr, RuntimeError) << "cannot load " << path << ": " << dlerror();
    auto find = [&](auto& function, const char* name) {
      void* address = dlsym(library, (std::string("cublasLt") + name).c_str());
      TVM_FFI_CHECK(address != nullptr, RuntimeError) << path << " has no cublasLt" << name;
      function = reinterpret_cast<std::decay_t<decltype(function)>>(address);
    };
    find(Create, "Create");
    find(GetStatusString, "GetStatusString");
    find(MatmulDescCreate, "MatmulDescCreate");
    find(MatmulDescSetAttribute, "MatmulDescSetAttribute");
    find(MatrixLayoutCreate, "MatrixLayoutCreate");
    find(MatmulPreferenceCreate, "MatmulPreferenceCreate");
    find(MatmulPreferenceDestroy, "MatmulPreferenceDestroy");
    find(MatmulPreferenceSetAttribute, "MatmulPreferenceSetAttribute");
    find(MatmulAlgoGetHeuristic, "MatmulAlgoGetHeuristic");
    find(Matmul, "Matmul");
  }

  void Check(int status, const char* what) const {
    TVM_FFI_CHECK(status == 0, RuntimeError)
        << "cuBLASLt: " << what << ": " << GetStatusString(status);
  }
};

// What is worked out once for products of one shape, types and alignment.
struct Plan {
  MatmulDesc operation;
  MatrixLayout weight, input, output;
  Algorithm algorithm;
};

// m, n, k, type of the factors, type of the product, bytes that every pointer is a multiple of
using PlanKey = std::tuple<int64_t, int64_t, int64_t, int, int, uint32_t>;

struct DeviceState {
  Handle handle;
  ffi::Tensor workspace;
  std::map<PlanKey, Plan> plans;
};

class Products {
 public:
  // Make products possible on the device of ``workspace``, which cuBLASLt may write to while one
  // runs: all products of a device belong on one stream. ``path`` is libcublasLt's.
  void Open(const ffi::String& path, ffi::Tensor workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (library_ == nullptr) library_ = new CublasLt(path);  // for the life of the process
    Handle handle;
    library_->Check(library_->Create(&handle), "cublasLtCreate");
    int device = workspace.device().device_id;
    devices_.emplace(device, DeviceState{handle, std::move(workspace), {}});
  }

  // out [m, n] = a [m, k] times w [n, k] transposed; float16, bfloat16 or float32, and float32
  // also as the product of the others. Sums are float32.
  void Matmul(ffi::TensorView a, ffi::TensorView w, ffi::TensorView out) {
    CheckArguments(a, w, out);
    int64_t m = a.size(0), n = w.size(0), k = a.size(1);
    uint32_t alignment = std::min({Alignment(a), Alignment(w), Alignment(out)});
    PlanKey key{m, n, k, TypeOf(a), TypeOf(out), alignment};
    DeviceState& device = DeviceOf(out);
    const Plan& plan = PlanFor(device, key);
    float alpha = 1, beta = 0;
    library_->Check(
        library_->Matmul(device.handle, plan.operation, &alpha, Data(w), plan.weight, Data(a),
                         plan.input, &beta, Data(out), plan.output, Data(out), plan.output,
                         &plan.algorithm, device.workspace.data_ptr(),
                         static_cast<size_t>(device.workspace.numel()),
                         TVMFFIEnvGetStream(out.device().device_type, out.device().device_id)),
        "cublasLtMatmul");
  }

 private:
  static void CheckArguments(ffi::TensorView a, ffi::TensorView w, ffi::TensorView out) {
    for (ffi::TensorView tensor : {a, w, out}) {
      TVM_FFI_CHECK(tensor.ndim() == 2 && tensor.IsContiguous(), ValueError)
          << "wanted contiguous matrices, found " << tensor.ndim() << " dimensions";
    }
    TVM_FFI_CHECK(a.size(1) == w.size(1) && out.size(0) == a.size(0) && out.size(1) == w.size(0),
                  ValueError)
        << "shapes " << a.shape() << ", " << w.shape() << " -> " << out.shape()
        << ", wanted [m, k], [n, k] -> [m, n]";
    TVM_FFI_CHECK(a.dtype() == w.dtype() && (out.dtype() == a.dtype() || TypeOf(out) == kFloat32),
                  TypeError)
        << "types " << ffi::DLDataTypeToString(a.dtype()) << ", "
        << ffi::DLDataTypeToString(w.dtype()) << " -> " << ffi::DLDataTypeToString(out.dtype());
  }

  static int TypeOf(ffi::TensorView tensor) {
    DLDataType type = tensor.dtype();
    if (type.lanes == 1 && type.code == kDLFloat && type.bits == 32) return kFloat32;
    if (type.lanes == 1 && type.code == kDLFloat && type.bits == 16) return kFloat16;
    if (type.lanes == 1 && type.code == kDLBfloat && type.bits == 16) return kBFloat16;
    TVM_FFI_THROW(TypeError) << "type " << ffi::DLDataTypeToString(type)
                             << ", wanted float32, float16 or bfloat16";
    TVM_FFI_UNREACHABLE();
  }

  static char* Data(ffi::TensorView tensor) {
    return static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset();
  }

  static uint32_t Alignment(ffi::TensorView tensor) {
    auto address = reinterpret_cast<uintptr_t>(Data(tensor)) | 256;
    return static_cast<uint32_t>(address & -address);
  }

  DeviceState& DeviceOf(ffi::TensorView tensor) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = devices_.find(tensor.device().device_id);
    TVM_FFI_CHECK(found != devices_.end(), RuntimeError)
        << "cuBLASLt was not opened for device " << tensor.device().device_id;
    return found->second;
  }

  const Plan& PlanFor(DeviceState& device, const PlanKey& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = device.plans.find(key);
    if (found == device.plans.end()) {
      found = device.plans.emplace(key, MakePlan(device, key)).first;
    }
    return found->second;
  }

  // cuBLASLt's matrices are stored by columns: ours are their transposes, and
  // out^T [n, m] = w [n, k] a^T [k, m], where w is the transpose of a matrix [k, n].
  Plan MakePlan(const DeviceState& device, const PlanKey& key) const {
    const auto& [m, n, k, type, out_type, alignment] = key;
    const CublasLt& lt = *library_;
    Plan plan;
    lt.Check(lt.MatmulDescCreate(&plan.operation, kComputeFloat32, kFloat32), "descriptor");
    lt.Check(lt.MatmulDescSetAttribute(plan.operation, kTransposeA, &kTransposed, sizeof(int)),
             "transposition");
    lt.Check(lt.MatrixLayoutCreate(&plan.weight, type, k, n, k), "layout");
    lt.Check(lt.MatrixLayoutCreate(&plan.input, type, k, m, k), "layout");
    lt.Check(lt.MatrixLayoutCreate(&plan.output, out_type, n, m, n), "layout");
    Preference preference;
    lt.Check(lt.MatmulPreferenceCreate(&preference), "preference");
    auto prefer = [&](PreferenceAttribute attribute, auto value) {
      lt.Check(lt.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
               "preference");
    };
    prefer(kMaxWorkspaceBytes, static_cast<uint64_t>(device.workspace.numel()));
    prefer(kReductionSchemeMask, kReduceInComputeType);
    for (auto matrix : {kMinAlignmentA, kMinAlignmentB, kMinAlignmentC, kMinAlignmentD}) {
      prefer(matrix, alignment);
    }
    HeuristicResult result;
    int found = 0;
    lt.Check(lt.MatmulAlgoGetHeuristic(device.handle, plan.operation, plan.weight, plan.input,
                                       plan.output, plan.output, preference, 1, &result, &found),
             "no algorithm");
    lt.MatmulPreferenceDestroy(preference);
    TVM_FFI_CHECK(found == 1, RuntimeError)
        << "cuBLASLt has no algorithm for [" << m << ", " << k << "] times [" << n << ", " << k
        << "] transposed";
    plan.algorithm = result.algorithm;
    return plan;
  }

  std::mutex mutex_;
  const CublasLt* library_ = nullptr;
  std::map<int, DeviceState> devices_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  static Products* products = new Products();
  ffi::reflection::GlobalDef()
      .def("gecko_mlc.cublaslt.open",
           [](const ffi::String& path, ffi::Tensor workspace) {
             products->Open(path, std::move(workspace));
           })
      .def("gecko_mlc.cublaslt.matmul",
           [](ffi::TensorView a, ffi::TensorView w, ffi::TensorView out) {
             products->Matmul(a, w, out);
           });
}

}  // namespace gecko_mlc
