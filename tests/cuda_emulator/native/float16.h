// 16-bit floating-point numbers as bits, to and from float32 (to nearest, ties to even).
#pragma once

#include <cstdint>
#include <cstring>

namespace emulator {

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  if (magnitude >= 0x7C00) return bits<float>(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  // These bits as a float are the value times 2^-112, exactly.
  return bits<float>(sign | bits<uint32_t>(bits<float>(magnitude << 13) * 0x1p112f));
}

inline uint16_t to_half(float x) {
  const uint32_t word = bits<uint32_t>(x);
  const uint16_t sign = word >> 16 & 0x8000;
  const uint32_t magnitude = word & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return 0x7FFF;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;
  if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 puts the rounding where the last bit is.
    return sign | static_cast<uint16_t>(bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3F000000);
  }
  return sign |
         static_cast<uint16_t>((magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13);
}

inline float from_bfloat16(uint16_t half) {
  return bits<float>(static_cast<uint32_t>(half) << 16);
}

inline uint16_t to_bfloat16(float x) {
  const uint32_t word = bits<uint32_t>(x);
  if ((word & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

}  // namespace emulator
