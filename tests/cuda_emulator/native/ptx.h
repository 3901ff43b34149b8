// PTX instructions as functions: results first, as arrays, then operands. ptx.py calls them.
#pragma once

#include "bulk_copy.h"
#include "cooperative.h"
#include "cuda_emulator.h"
#include "mbarrier.h"
#include "tensor_core.h"

namespace emulator::ptx {

// ---- operands --------------------------------------------------------------------------------

// A value in a register of another type: its bits, or its number where the sizes differ.
template <class To, class From>
inline To as(const From& from) {
  if constexpr (sizeof(To) == sizeof(From) && !std::is_same_v<To, bool>) {
    return bits<To>(from);
  } else {
    return static_cast<To>(from);
  }
}

template <class To, class From>
inline void put(To& to, const From& from) {
  to = as<To>(from);
}

// Addresses in shared memory are 32-bit numbers, all others are pointers.
inline unsigned char* address(uint32_t shared) { return shared_pointer(shared); }
inline unsigned char* address(int32_t shared) { return shared_pointer(shared); }
inline unsigned char* address(uint64_t generic) {
  return reinterpret_cast<unsigned char*>(generic);
}
inline unsigned char* address(const void* generic) {
  return static_cast<unsigned char*>(const_cast<void*>(generic));
}

inline void need_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("misaligned address");
}

// ---- matrices of a warp ----------------------------------------------------------------------

template <class Element>
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                const float (&c)[4]) {
  MmaOperands operands{d, a, b, c};
  collective(~0u, std::is_same_v<Element, __half> ? mma_f16 : mma_bf16, &operands);
}

struct Matrices {
  uint32_t* words;  // of this lane, one of each matrix
  unsigned count;
  unsigned char* row;  // lane 8 i + r has row r of matrix i
};

// Half-words 2 (lane mod 4) and the next of row lane / 4: where they lie.
template <bool kTransposed>
inline uint16_t* matrix_element(void* const* operands, unsigned matrix, unsigned lane, unsigned k) {
  unsigned row = lane / 4, column = lane % 4 * 2 + k;
  if (kTransposed) std::swap(row, column);
  unsigned char* start = static_cast<const Matrices*>(operands[matrix * 8 + row])->row;
  return reinterpret_cast<uint16_t*>(start) + column;
}

template <bool kTransposed>
inline void load_matrices(void* const* operands, uint32_t mask) {
  each_lane(mask, [&](unsigned lane) {
    const auto* own = static_cast<const Matrices*>(operands[lane]);
    for (unsigned matrix = 0; matrix < own->count; ++matrix) {
      const uint32_t low = *matrix_element<kTransposed>(operands, matrix, lane, 0);
      const uint32_t high = *matrix_element<kTransposed>(operands, matrix, lane, 1);
      own->words[matrix] = high << 16 | low;
    }
  });
}

template <bool kTransposed>
inline void store_matrices(void* const* operands, uint32_t mask) {
  each_lane(mask, [&](unsigned lane) {
    const auto* own = static_cast<const Matrices*>(operands[lane]);
    for (unsigned matrix = 0; matrix < own->count; ++matrix) {
      for (unsigned k = 0; k < 2; ++k) {
        *matrix_element<kTransposed>(operands, matrix, lane, k) = own->words[matrix] >> 16 * k;
      }
    }
  });
}

// The addresses count of the lanes whose rows are read.
inline Matrices matrices(uint32_t* words, unsigned count, unsigned char* row) {
  if (current->lane < count * 8) need_alignment(row, 16);
  return {words, count, row};
}

template <size_t N>
inline void ldmatrix(uint32_t (&words)[N], unsigned char* row) {
  Matrices operand = matrices(words, N, row);
  collective(~0u, load_matrices<false>, &operand);
}
template <size_t N>
inline void ldmatrix_trans(uint32_t (&words)[N], unsigned char* row) {
  Matrices operand = matrices(words, N, row);
  collective(~0u, load_matrices<true>, &operand);
}
template <size_t N>
inline void stmatrix(unsigned char* row, const uint32_t (&words)[N]) {
  Matrices operand = matrices(const_cast<uint32_t*>(words), N, row);
  collective(~0u, store_matrices<false>, &operand);
}
template <size_t N>
inline void stmatrix_trans(unsigned char* row, const uint32_t (&words)[N]) {
  Matrices operand = matrices(const_cast<uint32_t*>(words), N, row);
  collective(~0u, store_matrices<true>, &operand);
}

// ---- asynchronous copies ---------------------------------------------------------------------

// `size` bytes, of which the first `source_size` are read and the others are 0.
inline void cp_async(unsigned char* to, const unsigned char* from, uint32_t size,
                     uint32_t source_size) {
  if (source_size > size) fail("cp.async reads more than it writes");
  need_alignment(to, size);
  if (source_size != 0) need_alignment(from, size);
  start(Async::kCopies, [=] {
    std::memcpy(to, from, source_size);
    std::memset(to + source_size, 0, size - source_size);
  });
}
inline void cp_async(unsigned char* to, const unsigned char* from, uint32_t size) {
  cp_async(to, from, size, size);
}
inline void cp_async_commit_group() { commit(Async::kCopies); }
inline void cp_async_wait_group(uint32_t groups) { wait(Async::kCopies, groups); }
inline void cp_async_wait_all() {
  commit(Async::kCopies);
  wait(Async::kCopies, 0);
}

// ---- mbarriers and bulk copies ---------------------------------------------------------------

inline void mbarrier_init(unsigned char* at, uint32_t count) { MBarrier::at(at).init(count); }
inline void mbarrier_arrive(uint64_t (&state)[1], unsigned char* at, uint32_t count = 1) {
  state[0] = MBarrier::at(at).arrive(count);
}
inline void mbarrier_arrive(unsigned char* at, uint32_t count = 1) {
  MBarrier::at(at).arrive(count);
}
inline void mbarrier_arrive_expect_tx(uint64_t (&state)[1], unsigned char* at, uint32_t bytes) {
  MBarrier::at(at).expect(bytes);
  state[0] = MBarrier::at(at).arrive(1);
}
inline void mbarrier_expect_tx(unsigned char* at, uint32_t bytes) {
  MBarrier::at(at).expect(bytes);
}
inline void mbarrier_complete_tx(unsigned char* at, uint32_t bytes) {
  MBarrier::at(at).complete(bytes);
}
// The time a try may take is up to the device: here it is as long as it takes.
inline void mbarrier_try_wait_parity(bool (&done)[1], unsigned char* at, uint32_t parity,
                                     uint32_t = 0) {
  MBarrier::at(at).wait(parity & 1);
  done[0] = true;
}
inline void mbarrier_try_wait(bool (&done)[1], unsigned char* at, uint64_t state, uint32_t = 0) {
  mbarrier_try_wait_parity(done, at, MBarrier::parity(state));
}
inline void mbarrier_test_wait_parity(bool (&done)[1], unsigned char* at, uint32_t parity) {
  yield();
  done[0] = MBarrier::at(at).completed(parity & 1);
}
inline void mbarrier_test_wait(bool (&done)[1], unsigned char* at, uint64_t state) {
  mbarrier_test_wait_parity(done, at, MBarrier::parity(state));
}

inline void cp_async_bulk(uint32_t to, const unsigned char* from, uint32_t bytes,
                          uint32_t mbarrier) {
  bulk_load(to, from, bytes, mbarrier);
}
template <size_t N>
inline void cp_async_bulk_tensor(uint32_t to, const void* map, const int32_t (&coordinates)[N],
                                 uint32_t mbarrier) {
  bulk_tensor_load(to, map, coordinates, N, mbarrier);
}
// The box and its bytes arrive at the same place in each block of the mask.
template <size_t N>
inline void cp_async_bulk_tensor_multicast(uint32_t to, const void* map,
                                           const int32_t (&coordinates)[N], uint32_t mbarrier,
                                           uint16_t mask) {
  each_lane(mask, [&](uint32_t rank) {
    cp_async_bulk_tensor(address_in_block(to, rank), map, coordinates,
                         address_in_block(mbarrier, rank));
  });
}

using emulator::cluster_arrive;
using emulator::cluster_wait;
using emulator::grid_dependency_wait;

inline void mapa(uint32_t (&result)[1], uint32_t address, uint32_t rank) {
  result[0] = address_in_block(address, rank);
}

// ---- matrix products of a warpgroup ----------------------------------------------------------

// One warp's quarter of the product; the four do not wait for each other.
template <class Element, size_t N>
inline void wgmma(float* const (&d)[N], uint64_t a, uint64_t b, bool keep, uint32_t scale_a,
                  uint32_t scale_b, uint32_t transposed_a, uint32_t transposed_b) {
  WgmmaOperands operands{d, N, a, nullptr, b, keep, float(int32_t(scale_a) * int32_t(scale_b)),
                         transposed_a != 0, transposed_b != 0};
  collective(~0u, std::is_same_v<Element, __half> ? wgmma_f16 : wgmma_bf16, &operands);
}
template <class Element, size_t N>
inline void wgmma(float* const (&d)[N], const uint32_t (&a)[4], uint64_t b, bool keep,
                  uint32_t scale_a, uint32_t scale_b, uint32_t transposed_b) {
  WgmmaOperands operands{d, N, 0, a, b, keep, float(int32_t(scale_a) * int32_t(scale_b)), false,
                         transposed_b != 0};
  collective(~0u, std::is_same_v<Element, __half> ? wgmma_f16 : wgmma_bf16, &operands);
}
inline void wgmma_commit_group() { collective(~0u, commit_products, nullptr); }
inline void wgmma_wait_group(uint32_t groups) { collective(~0u, wait_products, &groups); }

// ---- barriers and warps ----------------------------------------------------------------------

inline void bar_sync(uint32_t id, uint32_t threads = 0) { barrier(id, threads, true, 0); }
inline void bar_arrive(uint32_t id, uint32_t threads) { barrier(id, threads, false, 0); }

inline void elect(uint32_t (&leader)[1], bool (&elected)[1], uint32_t mask) {
  __syncwarp(mask);
  leader[0] = __builtin_ctz(mask);
  elected[0] = current->lane == leader[0];
}

#define EMULATOR_REDUX(name, combine)                                  \
  template <class T>                                                   \
  inline void redux_##name(T (&result)[1], T value, uint32_t mask) {   \
    result[0] = reduce<T, combine>(mask, value);                       \
  }
EMULATOR_REDUX(add, emulator::add)
EMULATOR_REDUX(min, smaller)
EMULATOR_REDUX(max, larger)
EMULATOR_REDUX(and, bit_and)
EMULATOR_REDUX(or, bit_or)
EMULATOR_REDUX(xor, bit_xor)
#undef EMULATOR_REDUX

// ---- memory ----------------------------------------------------------------------------------

template <class T, size_t N>
inline void load(T (&values)[N], const unsigned char* from) {
  need_alignment(from, sizeof values);
  std::memcpy(values, from, sizeof values);
}
template <class T, size_t N>
inline void store(unsigned char* to, const T (&values)[N]) {
  need_alignment(to, sizeof values);
  std::memcpy(to, values, sizeof values);
}
template <class T>
inline void store(unsigned char* to, const T& value) {
  need_alignment(to, sizeof value);
  std::memcpy(to, &value, sizeof value);
}

template <class T>
inline void atomic_add(unsigned char* at, const T& value) {
  atomicAdd(reinterpret_cast<T*>(at), value);
}
template <class T>
inline void atomic_add(T (&before)[1], unsigned char* at, const T& value) {
  before[0] = atomicAdd(reinterpret_cast<T*>(at), value);
}
template <class T>
inline void atomic_exchange(T (&before)[1], unsigned char* at, const T& value) {
  before[0] = atomicExch(reinterpret_cast<T*>(at), value);
}
template <class T>
inline void atomic_cas(T (&before)[1], unsigned char* at, const T& compare, const T& value) {
  before[0] = atomicCAS(reinterpret_cast<T*>(at), compare, value);
}

inline void cvta_to_shared(uint64_t (&result)[1], const unsigned char* pointer) {
  result[0] = shared_address(pointer);
}

// ---- arithmetic ------------------------------------------------------------------------------

template <class T, class U>
inline void mov(T (&result)[1], const U& value) {
  result[0] = static_cast<T>(value);
}

inline float f32_add(float a, float b) { return a + b; }
inline float f32_mul(float a, float b) { return a * b; }
inline float f32_min(float a, float b) { return std::fmin(a, b); }
inline float f32_max(float a, float b) { return std::fmax(a, b); }

// The second operand is the lower half.
inline void cvt_f16x2(uint32_t (&result)[1], float high, float low) {
  result[0] = static_cast<uint32_t>(to_half(high)) << 16 | to_half(low);
}
inline void cvt_bf16x2(uint32_t (&result)[1], float high, float low) {
  result[0] = static_cast<uint32_t>(to_bfloat16(high)) << 16 | to_bfloat16(low);
}

#define EMULATOR_SETP(name, comparison)                        \
  template <class T>                                           \
  inline void setp_##name(bool (&result)[1], T a, T b) {       \
    result[0] = a comparison b;                                \
  }
EMULATOR_SETP(eq, ==)
EMULATOR_SETP(ne, !=)
EMULATOR_SETP(lt, <)
EMULATOR_SETP(le, <=)
EMULATOR_SETP(gt, >)
EMULATOR_SETP(ge, >=)
#undef EMULATOR_SETP

template <class T>
inline void selp(T (&result)[1], T a, T b, bool condition) {
  result[0] = condition ? a : b;
}

}  // namespace emulator::ptx
