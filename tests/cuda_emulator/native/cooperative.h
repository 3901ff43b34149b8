// Matrix operations of a warp on matrices of 16 x 16, as tir_kernels.gpu.cooperative names them.
// They are none of CUDA's: what a Vulkan device does with them is written down here a second time.
#pragma once

#include "cuda_emulator.h"

namespace emulator::cooperative {

constexpr unsigned kSize = 16, kPart = kSize * kSize / kWarpSize;

struct Place {
  unsigned row, column;
};

// Element i of a lane's part: an order like no device's, since a kernel must not count on any.
inline Place place(unsigned lane, unsigned i) {
  const unsigned number = (lane * 5 + i * 37) % kWarpSize + i * kWarpSize;
  return {number / kSize, number % kSize ^ number / kSize};
}

inline float wide(float x) { return x; }
inline float wide(__half x) { return __half2float(x); }
inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

// What one lane gives to a load or a store: its part, where the matrix begins, elements of memory
// from a row (or, transposed, from a column) to the next.
template <class Element>
struct Access {
  Element* part;
  Element* memory;
  unsigned stride;
  bool transposed, store;
};

template <class Element>
inline void access(void* const* operands, uint32_t mask) {
  if (mask != ~0u) fail("a cooperative matrix needs all lanes of the warp");
  const auto& first = *static_cast<const Access<Element>*>(operands[0]);
  if (reinterpret_cast<uintptr_t>(first.memory) % 16 != 0 ||
      first.stride * sizeof(Element) % 16 != 0) {
    fail("rows of a cooperative matrix must begin at multiples of 16 bytes");
  }
  each_lane(mask, [&](unsigned lane) {
    const auto& own = *static_cast<const Access<Element>*>(operands[lane]);
    if (own.memory != first.memory || own.stride != first.stride) {
      fail("the lanes of a warp differ in where a cooperative matrix lies");
    }
    for (unsigned i = 0; i < kPart; ++i) {
      auto [row, column] = place(lane, i);
      if (own.transposed) std::swap(row, column);
      Element& element = own.memory[row * own.stride + column];
      if (own.store) {
        element = own.part[i];
      } else {
        own.part[i] = element;
      }
    }
  });
}

// The stride is in words of 32 bits.
template <class Element>
inline int move(Element* part, void* memory, int stride, bool transposed, bool store) {
  Access<Element> operand{part, static_cast<Element*>(memory),
                          static_cast<unsigned>(stride * sizeof(float) / sizeof(Element)),
                          transposed, store};
  collective(~0u, access<Element>, &operand);
  return 0;
}

template <class Element>
struct Product {
  float* sums;
  const Element *left, *right;
};

template <class Element>
inline void multiply(void* const* operands, uint32_t mask) {
  if (mask != ~0u) fail("a cooperative matrix needs all lanes of the warp");
  float left[kSize][kSize], right[kSize][kSize];
  each_lane(mask, [&](unsigned lane) {
    const auto& own = *static_cast<const Product<Element>*>(operands[lane]);
    for (unsigned i = 0; i < kPart; ++i) {
      const auto [row, column] = place(lane, i);
      left[row][column] = wide(own.left[i]);
      right[column][row] = wide(own.right[i]);
    }
  });
  each_lane(mask, [&](unsigned lane) {
    const auto& own = *static_cast<const Product<Element>*>(operands[lane]);
    for (unsigned i = 0; i < kPart; ++i) {
      const auto [row, column] = place(lane, i);
      float sum = 0;
      for (unsigned k = 0; k < kSize; ++k) sum += left[row][k] * right[column][k];
      own.sums[i] += sum;
    }
  });
}

}  // namespace emulator::cooperative

template <class Element>
inline int cooperative_load_left(Element* matrix, void* source, int stride) {
  return emulator::cooperative::move(matrix, source, stride, false, false);
}
template <class Element>
inline int cooperative_load_right(Element* matrix, void* source, int stride) {
  return emulator::cooperative::move(matrix, source, stride, true, false);
}
template <class Element>
inline int cooperative_load_right_by_depth(Element* matrix, void* source, int stride) {
  return emulator::cooperative::move(matrix, source, stride, false, false);
}
inline int cooperative_store_sums(void* target, float* matrix, int stride) {
  return emulator::cooperative::move(matrix, target, stride, false, true);
}
inline int cooperative_clear_sums(float* matrix) {
  for (unsigned i = 0; i < emulator::cooperative::kPart; ++i) matrix[i] = 0;
  return 0;
}
template <class Element>
inline int cooperative_multiply_add(float* sums, Element* left, Element* right) {
  emulator::cooperative::Product<Element> operand{sums, left, right};
  emulator::collective(~0u, emulator::cooperative::multiply<Element>, &operand);
  return 0;
}
