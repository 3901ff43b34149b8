// Matrix products of a warp. Fragments as in the PTX ISA, "Warp Level Matrix Instructions".
#pragma once

#include <cstdint>

namespace emulator {

// mma.sync m16n8k16, d = a b + c: what one lane gives.
struct MmaOperands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

void mma_f16(void* const* operands, uint32_t mask);
void mma_bf16(void* const* operands, uint32_t mask);

}  // namespace emulator
