#include "tensor_core.h"

#include "execution.h"
#include "float16.h"

namespace emulator {
namespace {

constexpr unsigned kM = 16, kN = 8, kK = 16;

template <float (*Load)(uint16_t)>
void mma(void* const* operands, uint32_t mask) {
  if (mask != ~0u) fail("mma needs all lanes of the warp");
  float a[kM][kK], b[kN][kK];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const MmaOperands*>(operands[lane]);
    const unsigned group = lane / 4, pair = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned k = 0; k < 2; ++k) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + k] = Load(own->a[i] >> 16 * k);
        if (i < 2) b[group][pair + i * 8 + k] = Load(own->b[i] >> 16 * k);
      }
    }
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const MmaOperands*>(operands[lane]);
    for (unsigned i = 0; i < 4; ++i) {
      const float* row = a[lane / 4 + i / 2 * 8];
      const float* column = b[lane % 4 * 2 + i % 2];
      float sum = 0;
      for (unsigned k = 0; k < kK; ++k) sum += row[k] * column[k];
      own->d[i] = own->c[i] + sum;
    }
  }
}

}  // namespace

void mma_f16(void* const* operands, uint32_t mask) { mma<from_half>(operands, mask); }
void mma_bf16(void* const* operands, uint32_t mask) { mma<from_bfloat16>(operands, mask); }

}  // namespace emulator
