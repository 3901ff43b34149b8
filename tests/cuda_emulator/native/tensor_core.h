// Matrix products of a warp and of a warpgroup. Fragments and descriptors as in the PTX ISA, "Warp
// Level Matrix Instructions" and "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include <cstddef>
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

// wgmma m64nNk16, d (+)= scale a b: what one lane gives. Without `a_registers`, `a` is a
// descriptor as `b` is. `d` has N / 2 pointers.
struct WgmmaOperands {
  float* const* d;
  size_t registers;
  uint64_t a;
  const uint32_t* a_registers;
  uint64_t b;
  bool keep;
  float scale;
  bool transposed_a, transposed_b;
};

void wgmma_f16(void* const* operands, uint32_t mask);
void wgmma_bf16(void* const* operands, uint32_t mask);
void commit_products(void* const* operands, uint32_t mask);
// The operand is how many groups may be left.
void wait_products(void* const* operands, uint32_t mask);

}  // namespace emulator
