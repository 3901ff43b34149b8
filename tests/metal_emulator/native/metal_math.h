// MSL's functions of numbers.
#pragma once

#include "metal_types.h"

namespace metal {

// Of float and of half, which is computed in float.
#define EMULATOR_FUNCTION(name)                                       \
  inline float name(float x) { return __builtin_##name##f(x); }       \
  inline half name(half x) { return half(__builtin_##name##f(float(x))); }
EMULATOR_FUNCTION(ceil)
EMULATOR_FUNCTION(cos)
EMULATOR_FUNCTION(exp)
EMULATOR_FUNCTION(exp2)
EMULATOR_FUNCTION(fabs)
EMULATOR_FUNCTION(floor)
EMULATOR_FUNCTION(log)
EMULATOR_FUNCTION(log2)
EMULATOR_FUNCTION(rint)
EMULATOR_FUNCTION(sin)
EMULATOR_FUNCTION(sqrt)
EMULATOR_FUNCTION(tanh)
EMULATOR_FUNCTION(trunc)
#undef EMULATOR_FUNCTION
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }

#define EMULATOR_MINMAX(type)                                 \
  inline type min(type a, type b) { return b < a ? b : a; }   \
  inline type max(type a, type b) { return a < b ? b : a; }   \
  inline type select(type a, type b, bool c) { return c ? b : a; }
EMULATOR_MINMAX(char)
EMULATOR_MINMAX(uchar)
EMULATOR_MINMAX(short)
EMULATOR_MINMAX(ushort)
EMULATOR_MINMAX(int)
EMULATOR_MINMAX(uint)
EMULATOR_MINMAX(long)
EMULATOR_MINMAX(ulong)
EMULATOR_MINMAX(half)
EMULATOR_MINMAX(float)
#undef EMULATOR_MINMAX
inline bool select(bool a, bool b, bool c) { return c ? b : a; }

template <class To, class From>
inline To as_type(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps all bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace metal

// A keyword of MSL, not a name in its library.
using metal::as_type;
