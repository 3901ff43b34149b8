// CUDA C++ as TVM's code generator uses it, for a C++ compiler. Included before every kernel.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "execution.h"
#include "float16.h"

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block->index)
#define blockDim (emulator::current->launch->block)
#define gridDim (emulator::current->launch->grid)
constexpr int warpSize = 32;

// ---- vector types ----------------------------------------------------------------------------

#define EMULATOR_VECTORS(name, element, align2, align4)                                       \
  struct name##1 { element x; };                                                              \
  struct alignas(align2) name##2 { element x, y; };                                           \
  struct name##3 { element x, y, z; };                                                        \
  struct alignas(align4) name##4 { element x, y, z, w; };                                     \
  inline name##1 make_##name##1(element x) { return {x}; }                                    \
  inline name##2 make_##name##2(element x, element y) { return {x, y}; }                      \
  inline name##3 make_##name##3(element x, element y, element z) { return {x, y, z}; }        \
  inline name##4 make_##name##4(element x, element y, element z, element w) {                 \
    return {x, y, z, w};                                                                      \
  }

EMULATOR_VECTORS(char, signed char, 2, 4)
EMULATOR_VECTORS(uchar, unsigned char, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(ushort, unsigned short, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(uint, unsigned, 8, 16)
EMULATOR_VECTORS(longlong, long long, 16, 16)
EMULATOR_VECTORS(ulonglong, unsigned long long, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS

// ---- bits ------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x != 0 ? __builtin_clz(x) : 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

// ---- half precision --------------------------------------------------------------------------

namespace emulator {

// A 16-bit floating-point number; arithmetic rounds the float32 result.
template <class Self, float (*Load)(uint16_t), uint16_t (*Store)(float)>
struct Float16 {
  uint16_t bits_;

  Float16() = default;
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  Float16(Number x) : bits_(Store(static_cast<float>(x))) {}
  operator float() const { return Load(bits_); }

  friend Self operator+(Self a, Self b) { return Self(float(a) + float(b)); }
  friend Self operator-(Self a, Self b) { return Self(float(a) - float(b)); }
  friend Self operator*(Self a, Self b) { return Self(float(a) * float(b)); }
  friend Self operator/(Self a, Self b) { return Self(float(a) / float(b)); }
  friend Self operator-(Self a) { return Self(-float(a)); }
  friend bool operator<(Self a, Self b) { return float(a) < float(b); }
  friend bool operator>(Self a, Self b) { return float(a) > float(b); }
  friend bool operator<=(Self a, Self b) { return float(a) <= float(b); }
  friend bool operator>=(Self a, Self b) { return float(a) >= float(b); }
  friend bool operator==(Self a, Self b) { return float(a) == float(b); }
  friend bool operator!=(Self a, Self b) { return float(a) != float(b); }
  Self& operator+=(Self b) { return self() = self() + b; }
  Self& operator-=(Self b) { return self() = self() - b; }
  Self& operator*=(Self b) { return self() = self() * b; }
  Self& operator/=(Self b) { return self() = self() / b; }

 private:
  Self& self() { return static_cast<Self&>(*this); }
};

}  // namespace emulator

struct __half : emulator::Float16<__half, emulator::from_half, emulator::to_half> {
  using Float16::Float16;
};
struct __nv_bfloat16
    : emulator::Float16<__nv_bfloat16, emulator::from_bfloat16, emulator::to_bfloat16> {
  using Float16::Float16;
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x, __half y) : x(x), y(y) {}
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }

inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return x; }
inline half __float2half_rn(float x) { return x; }
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(half2 v) { return {v.x, v.y}; }
inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(nv_bfloat162 v) { return {v.x, v.y}; }
inline unsigned short __half_as_ushort(half x) { return x.bits_; }
inline unsigned short __bfloat16_as_ushort(nv_bfloat16 x) { return x.bits_; }
inline half __ushort_as_half(unsigned short x) { return emulator::bits<half>(x); }
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return emulator::bits<nv_bfloat16>(x); }

#define EMULATOR_HALF(type, type2)                                                      \
  inline bool __hgt(type a, type b) { return a > b; }                                   \
  inline bool __hlt(type a, type b) { return a < b; }                                   \
  inline bool __hge(type a, type b) { return a >= b; }                                  \
  inline bool __hle(type a, type b) { return a <= b; }                                  \
  inline bool __heq(type a, type b) { return a == b; }                                  \
  inline bool __hne(type a, type b) { return a != b; }                                  \
  inline bool __hisnan(type a) { return std::isnan(float(a)); }                         \
  inline type __hadd(type a, type b) { return a + b; }                                  \
  inline type __hsub(type a, type b) { return a - b; }                                  \
  inline type __hmul(type a, type b) { return a * b; }                                  \
  inline type __hdiv(type a, type b) { return a / b; }                                  \
  inline type __hneg(type a) { return -a; }                                             \
  inline type __habs(type a) { return std::fabs(float(a)); }                            \
  inline type __hfma(type a, type b, type c) {                                          \
    return static_cast<float>(double(a) * double(b) + double(c));                       \
  }                                                                                     \
  inline type __hmax(type a, type b) { return std::fmax(float(a), float(b)); }          \
  inline type __hmin(type a, type b) { return std::fmin(float(a), float(b)); }          \
  inline type2 __hadd2(type2 a, type2 b) { return {a.x + b.x, a.y + b.y}; }             \
  inline type2 __hsub2(type2 a, type2 b) { return {a.x - b.x, a.y - b.y}; }             \
  inline type2 __hmul2(type2 a, type2 b) { return {a.x * b.x, a.y * b.y}; }             \
  inline type2 __hmax2(type2 a, type2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
  inline type2 __hmin2(type2 a, type2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; } \
  inline type2 __hfma2(type2 a, type2 b, type2 c) {                                     \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                              \
  }                                                                                     \
  inline type hexp(type x) { return std::exp(float(x)); }                               \
  inline type hexp2(type x) { return std::exp2(float(x)); }                             \
  inline type hlog(type x) { return std::log(float(x)); }                               \
  inline type hlog2(type x) { return std::log2(float(x)); }                             \
  inline type hsqrt(type x) { return std::sqrt(float(x)); }                             \
  inline type hrsqrt(type x) { return 1.0f / std::sqrt(float(x)); }                     \
  inline type hrcp(type x) { return 1.0f / float(x); }                                  \
  inline type hsin(type x) { return std::sin(float(x)); }                               \
  inline type hcos(type x) { return std::cos(float(x)); }                               \
  inline type htanh(type x) { return std::tanh(float(x)); }                             \
  inline type hfloor(type x) { return std::floor(float(x)); }                           \
  inline type hceil(type x) { return std::ceil(float(x)); }                             \
  inline type htrunc(type x) { return std::trunc(float(x)); }                           \
  inline type hrint(type x) { return std::rint(float(x)); }

EMULATOR_HALF(half, half2)
EMULATOR_HALF(nv_bfloat16, nv_bfloat162)
#undef EMULATOR_HALF

// ---- mathematics -----------------------------------------------------------------------------

#define CUDART_INF_F __builtin_huge_valf()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_huge_val()
#define CUDART_NAN __builtin_nan("")

#define EMULATOR_MINMAX(type)                             \
  inline type max(type a, type b) { return a < b ? b : a; } \
  inline type min(type a, type b) { return b < a ? b : a; }
EMULATOR_MINMAX(int)
EMULATOR_MINMAX(unsigned)
EMULATOR_MINMAX(long)
EMULATOR_MINMAX(unsigned long)
EMULATOR_MINMAX(long long)
EMULATOR_MINMAX(unsigned long long)
#undef EMULATOR_MINMAX
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float2 __fmul2_rn(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
inline float2 __fadd2_rn(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
inline int __float2int_rn(float x) { return static_cast<int>(std::rint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
// Names that the C library declares too.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)

// ---- threads ---------------------------------------------------------------------------------

inline void __syncthreads() { emulator::barrier(0, 0, true, 0); }
inline int __syncthreads_count(int predicate) {
  return emulator::barrier(0, 0, true, predicate != 0);
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
inline void __threadfence_system() { __threadfence(); }
inline void __nanosleep(unsigned) { emulator::yield(); }
[[noreturn]] inline void __trap() { emulator::fail("trap"); }

namespace cooperative_groups {

struct ThreadBlock {
  unsigned thread_rank() const {
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  }
};
inline ThreadBlock this_thread_block() { return {}; }

}  // namespace cooperative_groups

namespace emulator {

template <class Function>
inline void each_lane(uint32_t mask, Function function) {
  for (; mask != 0; mask &= mask - 1) function(static_cast<unsigned>(__builtin_ctz(mask)));
}

// Gives each lane's `value` to the lane that names it as its source.
template <class T>
struct Shuffle {
  T value, result;
  unsigned source;

  static void exchange(void* const* operands, uint32_t mask) {
    each_lane(mask, [&](unsigned lane) {
      auto* own = static_cast<Shuffle*>(operands[lane]);
      if ((mask >> own->source & 1) == 0) fail("a shuffle reads a lane that is not there");
      own->result = static_cast<const Shuffle*>(operands[own->source])->value;
    });
  }
};

// Shuffles within segments of `width` lanes; out of the segment, a lane keeps its own value.
template <class T>
inline T shuffle(uint32_t mask, T value, int source, int width) {
  const int lane = static_cast<int>(current->lane), start = lane & ~(width - 1);
  if (source < start || source >= start + width) source = lane;
  Shuffle<T> operand{value, value, static_cast<unsigned>(source)};
  emulator::collective(mask, Shuffle<T>::exchange, &operand);
  return operand.result;
}

// Gives all lanes what `Combine` makes of every lane's value.
template <class T, T (*Combine)(T, T)>
struct Reduction {
  T value;

  static void combine(void* const* operands, uint32_t mask) {
    T total = static_cast<Reduction*>(operands[__builtin_ctz(mask)])->value;
    each_lane(mask & (mask - 1), [&](unsigned lane) {
      total = Combine(total, static_cast<Reduction*>(operands[lane])->value);
    });
    each_lane(mask, [&](unsigned lane) { static_cast<Reduction*>(operands[lane])->value = total; });
  }
};

template <class T, T (*Combine)(T, T)>
inline T reduce(uint32_t mask, T value) {
  Reduction<T, Combine> operand{value};
  emulator::collective(mask, Reduction<T, Combine>::combine, &operand);
  return operand.value;
}

template <class T> T add(T a, T b) { return a + b; }
template <class T> T smaller(T a, T b) { return b < a ? b : a; }
template <class T> T larger(T a, T b) { return a < b ? b : a; }
template <class T> T bit_and(T a, T b) { return a & b; }
template <class T> T bit_or(T a, T b) { return a | b; }
template <class T> T bit_xor(T a, T b) { return a ^ b; }

}  // namespace emulator

inline void __syncwarp(unsigned mask = ~0u) {
  emulator::collective(mask, [](void* const*, uint32_t) {}, nullptr);
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int start = static_cast<int>(emulator::current->lane) & ~(width - 1);
  return emulator::shuffle(mask, value, start + (source & (width - 1)), width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulator::shuffle(mask, value, static_cast<int>(emulator::current->lane) ^ lanes, width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  return emulator::shuffle(mask, value, static_cast<int>(emulator::current->lane + lanes), width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  return emulator::shuffle(mask, value, static_cast<int>(emulator::current->lane - lanes), width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::reduce<unsigned, emulator::bit_or>(
      mask, predicate != 0 ? 1u << emulator::current->lane : 0u);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline unsigned __activemask() { return ~0u; }
template <class T>
inline T __reduce_add_sync(unsigned mask, T x) {
  return emulator::reduce<T, emulator::add>(mask, x);
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T x) {
  return emulator::reduce<T, emulator::smaller>(mask, x);
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T x) {
  return emulator::reduce<T, emulator::larger>(mask, x);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned x) {
  return emulator::reduce<unsigned, emulator::bit_and>(mask, x);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x) {
  return emulator::reduce<unsigned, emulator::bit_or>(mask, x);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned x) {
  return emulator::reduce<unsigned, emulator::bit_xor>(mask, x);
}

// ---- memory ----------------------------------------------------------------------------------

template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
inline T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
inline void __stcs(T* pointer, T value) {
  *pointer = value;
}
template <class T>
inline void __stcg(T* pointer, T value) {
  *pointer = value;
}

namespace emulator {

// Replaces *pointer by change(*pointer), undivided, and returns what it held.
template <class T, class Change>
inline T atomic(T* pointer, Change change) {
  using Word = std::conditional_t<
      sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  Word* const word = reinterpret_cast<Word*>(pointer);
  Word before = __atomic_load_n(word, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(word, &before, bits<Word>(T(change(bits<T>(before)))), false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return bits<T>(before);
}

}  // namespace emulator

template <class T>
inline T atomicAdd(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return old + value; });
}
template <class T>
inline T atomicMax(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return old < value ? value : old; });
}
template <class T>
inline T atomicMin(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return value < old ? value : old; });
}
template <class T>
inline T atomicExch(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* pointer, T compare, T value) {
  return emulator::atomic(pointer, [=](T old) { return old == compare ? value : old; });
}

inline size_t __cvta_generic_to_shared(const void* pointer) {
  return emulator::shared_address(pointer);
}
inline void* __cvta_shared_to_generic(size_t address) {
  return emulator::shared_pointer(static_cast<uint32_t>(address));
}

struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

// ---- kernels ---------------------------------------------------------------------------------

namespace emulator {

template <auto Function>
struct Describe;

template <class... Arguments, void (*Function)(Arguments...)>
struct Describe<Function> {
  static constexpr size_t kSizes[] = {sizeof(Arguments)..., 0};

  template <size_t... I>
  static void call([[maybe_unused]] void** arguments, std::index_sequence<I...>) {
    Function(*static_cast<std::remove_cv_t<Arguments>*>(arguments[I])...);
  }
  static void invoke(void** arguments) {
    call(arguments, std::index_sequence_for<Arguments...>());
  }
  static constexpr Kernel kernel(size_t static_shared) {
    return {invoke, kSizes, sizeof...(Arguments), static_shared};
  }
};

}  // namespace emulator

#define EMULATOR_KERNEL(name, static_shared)                                                  \
  extern "C" __attribute__((visibility("default"))) const emulator::Kernel                    \
      emulator_kernel_##name = emulator::Describe<name>::kernel(static_shared);
