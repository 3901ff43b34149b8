// What a thread of a Metal kernel asks of the device that it runs on.
#pragma once

#include "metal_types.h"

namespace emulator {

struct Position {
  uint of_group[3], in_group[3];
};

// A kernel as its library describes it, under the name `metal_kernel_<name>`.
struct Description {
  void (*invoke)(void** buffers);
  uint buffers;
  ulong threadgroup_bytes;
};

Position position();
unsigned char* threadgroup_memory();
uint simd_lane();
// Waits for all lanes of the simd-group, and has done once what they meet for: operands[lane] is
// what each of the lanes of `mask` gave.
void simd_operation(void (*operation)(void* const* operands, uint mask), void* operand);
// Waits for all threads of the threadgroup, which have to come to the same line of the source.
void threadgroup_barrier(int line);
[[noreturn]] void fault(const char* message);

// An array in threadgroup memory: every access to it is checked, by whatever type.
template <class T, int N>
class ThreadgroupArray {
 public:
  explicit ThreadgroupArray(ulong offset)
      : elements_(reinterpret_cast<T*>(threadgroup_memory() + offset)) {}
  explicit ThreadgroupArray(T* elements) : elements_(elements) {}

  // The same memory as an array of another type: what a cast of its address gives.
  template <class Other>
  auto as() const {
    return ThreadgroupArray<Other, N * sizeof(T) / sizeof(Other)>(
        reinterpret_cast<Other*>(elements_));
  }

  T& operator[](long i) const { return *address<T>(i); }

  struct Place {
    const ThreadgroupArray& array;
    long first;

    template <class Other>
    explicit operator Other*() const {
      return array.template address<Other>(first);
    }
  };
  Place operator+(long i) const { return {*this, i}; }

 private:
  template <class Other>
  Other* address(long i) const {
    if (i < 0 || i * long(sizeof(T)) + long(sizeof(Other)) > long(N * sizeof(T))) {
      fault("index out of bounds of an array in threadgroup memory");
    }
    return reinterpret_cast<Other*>(elements_ + i);
  }

  T* elements_;
};

// Gives each lane's `value` to the lane that names it as its source.
template <class T>
struct Shuffle {
  T value, result;
  uint source;

  static void exchange(void* const* operands, uint mask) {
    for (uint rest = mask; rest != 0; rest &= rest - 1) {
      auto* own = static_cast<Shuffle*>(operands[__builtin_ctz(rest)]);
      if (own->source >= 32 || (mask >> own->source & 1) == 0) {
        fault("a shuffle reads a lane that is not there");
      }
      own->result = static_cast<const Shuffle*>(operands[own->source])->value;
    }
  }
};

// What MSL's shuffles move: 16 or 32 bits.
template <class T>
struct CanShuffle {
  static constexpr bool value = false;
};
template <> struct CanShuffle<short> { static constexpr bool value = true; };
template <> struct CanShuffle<ushort> { static constexpr bool value = true; };
template <> struct CanShuffle<int> { static constexpr bool value = true; };
template <> struct CanShuffle<uint> { static constexpr bool value = true; };
template <> struct CanShuffle<half> { static constexpr bool value = true; };
template <> struct CanShuffle<float> { static constexpr bool value = true; };

template <class T>
inline T shuffle(T value, uint source) {
  static_assert(CanShuffle<T>::value, "a type that simd_shuffle moves");
  Shuffle<T> operand{value, value, source};
  simd_operation(Shuffle<T>::exchange, &operand);
  return operand.result;
}

}  // namespace emulator

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };

inline void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) {
  emulator::threadgroup_barrier(line);
}
inline void simdgroup_barrier(mem_flags) {
  emulator::simd_operation([](void* const*, uint) {}, nullptr);
}

template <class T>
inline T simd_shuffle(T value, ushort lane) {
  return emulator::shuffle(value, lane);
}
// Lanes that have none so far below or above keep their own.
template <class T>
inline T simd_shuffle_up(T value, ushort distance) {
  const uint lane = emulator::simd_lane();
  return emulator::shuffle(value, lane >= distance ? lane - distance : lane);
}
template <class T>
inline T simd_shuffle_down(T value, ushort distance) {
  const uint lane = emulator::simd_lane();
  return emulator::shuffle(value, lane + distance < 32 ? lane + distance : lane);
}
template <class T>
inline T simd_shuffle_xor(T value, ushort mask) {
  return emulator::shuffle(value, emulator::simd_lane() ^ mask);
}

}  // namespace metal
