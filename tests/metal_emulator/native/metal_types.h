// MSL's scalars and vectors.
#pragma once

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = _Float16;

static_assert(sizeof(long) == 8 && sizeof(half) == 2, "MSL's sizes");

namespace metal {

template <class T, int N>
struct Elements;
template <class T>
struct Elements<T, 2> {
  union {
    T all[2];
    struct {
      T x, y;
    };
  };
};
template <class T>
struct Elements<T, 3> {
  union {
    T all[3];
    struct {
      T x, y, z;
    };
  };
};
template <class T>
struct Elements<T, 4> {
  union {
    T all[4];
    struct {
      T x, y, z, w;
    };
  };
};

// As in MSL, a vector is made of its elements, of one for all, or of a vector of as many, and its
// address is a multiple of its size. Arithmetic is between vectors of one type.
template <class T, int N>
struct alignas(sizeof(T) * (N == 3 ? 4 : N)) vec : Elements<T, N> {
  vec() = default;
  explicit vec(T x) {
    for (T& element : this->all) element = x;
  }
  template <class... Others>
  explicit vec(T first, T second, Others... others)
      : Elements<T, N>{{{first, second, T(others)...}}} {
    static_assert(sizeof...(Others) == N - 2, "as many values as elements");
  }
  template <class Other>
  explicit vec(const vec<Other, N>& other) {
    for (int i = 0; i < N; ++i) this->all[i] = T(other.all[i]);
  }
  T& operator[](int i) { return this->all[i]; }
  const T& operator[](int i) const { return this->all[i]; }
};

#define EMULATOR_OPERATOR(op)                                            \
  template <class T, int N>                                              \
  inline vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<T, N> result;                                                    \
    for (int i = 0; i < N; ++i) result[i] = T(a[i] op b[i]);             \
    return result;                                                       \
  }
EMULATOR_OPERATOR(+)
EMULATOR_OPERATOR(-)
EMULATOR_OPERATOR(*)
EMULATOR_OPERATOR(/)
EMULATOR_OPERATOR(%)
EMULATOR_OPERATOR(&)
EMULATOR_OPERATOR(|)
EMULATOR_OPERATOR(^)
EMULATOR_OPERATOR(<<)
EMULATOR_OPERATOR(>>)
#undef EMULATOR_OPERATOR

}  // namespace metal

#define EMULATOR_VECTORS(name)         \
  using name##2 = metal::vec<name, 2>; \
  using name##3 = metal::vec<name, 3>; \
  using name##4 = metal::vec<name, 4>;
EMULATOR_VECTORS(char)
EMULATOR_VECTORS(uchar)
EMULATOR_VECTORS(short)
EMULATOR_VECTORS(ushort)
EMULATOR_VECTORS(int)
EMULATOR_VECTORS(uint)
EMULATOR_VECTORS(long)
EMULATOR_VECTORS(ulong)
EMULATOR_VECTORS(half)
EMULATOR_VECTORS(float)
#undef EMULATOR_VECTORS

constexpr half operator""h(long double x) { return half(x); }
