// What the digest programs share: a digest of bytes, and numbers that are the same on every machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

inline uint64_t digest(const void* p, size_t n) {
  uint64_t h = 1469598103934665603ull;
  for (size_t i = 0; i < n; ++i) h = (h ^ static_cast<const unsigned char*>(p)[i]) * 1099511628211ull;
  return h;
}
template <class T>
unsigned long digest(const std::vector<T>& v) {
  return static_cast<unsigned long>(digest(v.data(), v.size() * sizeof(T)));
}

inline float next() {  // in (-1, 1); a linear congruential generator
  static uint32_t state = 12345;
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-23f;
}
inline uint16_t half(float x, int dtype) {  // a finite bfloat16 or float16 near x, by truncation
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (dtype == 2) return static_cast<uint16_t>(bits >> 16);
  const uint32_t size = bits & 0x7FFFFFFFu;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | (size < 0x38800000u ? 0u : (size >> 13) - 0x1C000u));
}
inline std::vector<unsigned char> drawn(int64_t n, int dtype, float scale, bool positive = false) {
  std::vector<unsigned char> out(static_cast<size_t>(n) * 8);
  for (int64_t i = 0; i < n; ++i) {
    float x = next() * scale;
    if (positive && x < 0) x = -x;
    const double wide = x;
    const uint16_t narrow = half(x, dtype);
    if (dtype == 0) memcpy(&out[i * 4], &x, 4);
    if (dtype == 1) memcpy(&out[i * 8], &wide, 8);
    if (dtype >= 2) memcpy(&out[i * 2], &narrow, 2);
  }
  return out;
}
inline std::vector<float> floats(int64_t n, float scale = 1.0f) {
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = next() * scale;
  return out;
}
