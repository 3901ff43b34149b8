#include "tensor_core.h"

#include <array>
#include <memory>
#include <vector>

#include "execution.h"
#include "float16.h"
#include "swizzle.h"

namespace emulator {
namespace {

constexpr unsigned kM = 16, kN = 8, kK = 16;

// Element k of word i of a lane's fragment of a 16 x 16 matrix.
struct Place {
  unsigned row, column;
};
Place place(unsigned lane, unsigned i, unsigned k) {
  return {lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8 + k};
}

uint16_t half_of(uint32_t word, unsigned k) { return static_cast<uint16_t>(word >> 16 * k); }

template <float (*Load)(uint16_t)>
void mma(void* const* operands, uint32_t mask) {
  if (mask != ~0u) fail("mma needs all lanes of the warp");
  float a[kM][kK], b[kN][kK];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const MmaOperands*>(operands[lane]);
    for (unsigned k = 0; k < 2; ++k) {
      for (unsigned i = 0; i < 4; ++i) {
        const auto [row, column] = place(lane, i, k);
        a[row][column] = Load(half_of(own->a[i], k));
      }
      for (unsigned i = 0; i < 2; ++i) {
        b[lane / 4][lane % 4 * 2 + i * 8 + k] = Load(half_of(own->b[i], k));
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

// A matrix in shared memory as a descriptor tells, in bytes: rows are the product's rows (of b:
// columns), 16 deep; transposed, consecutive elements belong to consecutive rows.
class Descriptor {
 public:
  Descriptor(uint64_t word, bool transposed)
      : start_((word & 0x3FFF) << 4),
        leading_((word >> 16 & 0x3FFF) << 4),
        stride_((word >> 32 & 0x3FFF) << 4),
        transposed_(transposed) {
    // 1, 2, 3 in the descriptor are spans of 128, 64 and 32 bytes.
    const unsigned mode = word >> 62;
    span_ = mode == 0 ? 16 : 256u >> mode;
    if ((word >> 49 & 7) != 0) fail("matrix descriptors with a base offset are not emulated");
  }

  uint16_t at(const unsigned char* shared, unsigned row, unsigned k) const {
    const unsigned per_span = span_ / 2;
    uint32_t address = start_;
    if (transposed_) {
      const uint32_t across = span_ == 16 ? stride_ : leading_;
      const uint32_t down = span_ == 16 ? leading_ : stride_;
      address += row % per_span * 2 + row / per_span * across + k % 8 * span_ + k / 8 * down;
    } else {
      address += row % 8 * span_ + row / 8 * stride_;
      address += span_ == 16 ? k % 8 * 2 + k / 8 * leading_ : k * 2;
    }
    uint16_t half;
    std::memcpy(&half, shared + (swizzle(address, span_) - kSharedWindow), sizeof half);
    return half;
  }

 private:
  uint32_t start_, leading_, stride_;
  unsigned span_;
  bool transposed_;
};

// A warp's quarter of a product, kept until it is done.
struct Product {
  WgmmaOperands common;  // of lane 0
  std::array<std::vector<float*>, kWarpSize> d;
  std::array<std::array<uint32_t, 4>, kWarpSize> a;
  unsigned first_row;
  const unsigned char* shared;

  template <float (*Load)(uint16_t)>
  void multiply() const {
    const unsigned columns = common.registers * 2;
    float rows[kM][kK];
    if (common.a_registers == nullptr) {
      const Descriptor matrix(common.a, common.transposed_a);
      for (unsigned row = 0; row < kM; ++row) {
        for (unsigned k = 0; k < kK; ++k) {
          rows[row][k] = Load(matrix.at(shared, first_row + row, k));
        }
      }
    } else {
      for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        for (unsigned i = 0; i < 4; ++i) {
          for (unsigned k = 0; k < 2; ++k) {
            const auto [row, column] = place(lane, i, k);
            rows[row][column] = Load(half_of(a[lane][i], k));
          }
        }
      }
    }
    float sums[kM][256] = {}, deep[256];
    const Descriptor matrix(common.b, common.transposed_b);
    for (unsigned k = 0; k < kK; ++k) {
      for (unsigned column = 0; column < columns; ++column) {
        deep[column] = Load(matrix.at(shared, column, k));
      }
      for (unsigned row = 0; row < kM; ++row) {
        const float x = rows[row][k];
        for (unsigned column = 0; column < columns; ++column) sums[row][column] += x * deep[column];
      }
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      for (unsigned i = 0; i < common.registers; ++i) {
        float& d_i = *d[lane][i];
        const float sum = sums[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
        d_i = (common.keep ? d_i : 0.0f) + common.scale * sum;
      }
    }
  }
};

template <float (*Load)(uint16_t)>
void wgmma(void* const* operands, uint32_t mask) {
  if (mask != ~0u) fail("wgmma needs all lanes of the warp");
  auto product = std::make_shared<Product>();
  product->common = *static_cast<const WgmmaOperands*>(operands[0]);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto* own = static_cast<const WgmmaOperands*>(operands[lane]);
    product->d[lane].assign(own->d, own->d + own->registers);
    if (own->a_registers != nullptr) {
      std::copy(own->a_registers, own->a_registers + 4, product->a[lane].begin());
    }
  }
  const Index block = current->launch->block, thread = current->index;
  const unsigned rank = (thread.z * block.y + thread.y) * block.x + thread.x;
  product->first_row = rank / kWarpSize % 4 * kM;
  product->shared = current->block->shared;
  start(Async::kProducts, [=] { product->template multiply<Load>(); });
}

}  // namespace

void wgmma_f16(void* const* operands, uint32_t mask) { wgmma<from_half>(operands, mask); }
void wgmma_bf16(void* const* operands, uint32_t mask) { wgmma<from_bfloat16>(operands, mask); }
void commit_products(void* const*, uint32_t) { commit(Async::kProducts); }
void wait_products(void* const* operands, uint32_t) {
  wait(Async::kProducts, *static_cast<const uint32_t*>(operands[0]));
}

void mma_f16(void* const* operands, uint32_t mask) { mma<from_half>(operands, mask); }
void mma_bf16(void* const* operands, uint32_t mask) { mma<from_bfloat16>(operands, mask); }

}  // namespace emulator
