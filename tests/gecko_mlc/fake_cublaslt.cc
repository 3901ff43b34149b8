// cuBLASLt's interface over plain loops on the CPU, float32 only: what gecko_mlc/native/cublaslt.cc
// asks of it can be checked without a GPU.

#include <cstdint>
#include <cstring>

namespace {
constexpr int kNotSupported = 15;
int heuristics = 0;

struct Matmul {
  int transpose_a = 0;
};
struct Layout {
  int type;
  int64_t rows, columns, leading;
};
struct Wanted {
  uint64_t workspace = 0;
  uint32_t reduction = 7, alignment[4] = {};
};
struct Result {
  uint64_t algorithm[8];
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
}  // namespace

extern "C" {
int fake_heuristics() { return heuristics; }

int cublasLtCreate(void** handle) { return *handle = &heuristics, 0; }
const char* cublasLtGetStatusString(int status) {
  return status == kNotSupported ? "CUBLAS_STATUS_NOT_SUPPORTED" : "another";
}
int cublasLtMatmulDescCreate(Matmul** operation, int compute, int scale) {
  *operation = new Matmul;
  return compute == 68 && scale == 0 ? 0 : kNotSupported;
}
int cublasLtMatmulDescSetAttribute(Matmul* operation, int attribute, const int* value, size_t) {
  return attribute == 3 ? operation->transpose_a = *value, 0 : kNotSupported;
}
int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns,
                               int64_t leading) {
  *layout = new Layout{type, int64_t(rows), int64_t(columns), leading};
  return 0;
}
int cublasLtMatmulPreferenceCreate(Wanted** wanted) { return *wanted = new Wanted, 0; }
int cublasLtMatmulPreferenceDestroy(Wanted* wanted) { return delete wanted, 0; }
int cublasLtMatmulPreferenceSetAttribute(Wanted* wanted, int attribute, const void* value,
                                         size_t size) {
  void* to = attribute == 1   ? static_cast<void*>(&wanted->workspace)
             : attribute == 3 ? &wanted->reduction
                              : &wanted->alignment[attribute - 5];
  if (size != (attribute == 1 ? 8u : 4u)) return kNotSupported;
  std::memcpy(to, value, size);
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Matmul*, Layout* a, Layout*, Layout*, Layout*,
                                   Wanted* wanted, int, Result* results, int* found) {
  bool aligned = true;
  for (uint32_t bytes : wanted->alignment) aligned &= bytes >= 4 && bytes <= 256;
  if (a->type != 0 || !aligned || wanted->reduction != 2) return kNotSupported;
  results[0].algorithm[0] = ++heuristics;
  *found = 1;
  return 0;
}
int cublasLtMatmul(void*, Matmul* operation, const float* alpha, const float* a, Layout* a_layout,
                   const float* b, Layout* b_layout, const float* beta, const float*, Layout*,
                   float* d, Layout* d_layout, const uint64_t*, void* workspace, size_t bytes,
                   void*) {
  std::memset(workspace, 1, bytes);
  int64_t inner = b_layout->rows;
  for (int64_t column = 0; column < d_layout->columns; ++column) {
    for (int64_t row = 0; row < d_layout->rows; ++row) {
      float sum = 0;
      for (int64_t k = 0; k < inner; ++k) {
        int64_t place = operation->transpose_a ? k + row * a_layout->leading
                                               : row + k * a_layout->leading;
        sum += a[place] * b[k + column * b_layout->leading];
      }
      float& out = d[row + column * d_layout->leading];
      out = *alpha * sum + (*beta ? *beta * out : 0);
    }
  }
  return 0;
}
}
