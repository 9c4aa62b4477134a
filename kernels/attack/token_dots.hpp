// Products of up to eight rows with consecutive rows of the word table, which comes from memory once. Accumulators of two to four words
// times the rows stay in registers; what is read ahead covers the memory's latency.
#pragma once

#include "attack_api.hpp"

#include "../logprob/rows_lanes.hpp"

namespace TF_NS {

constexpr int64_t kQueries = 8;

template <class Call>
void with_words(int dtype, const Call& call) {
  switch (dtype) {
    case kBFloat16: return call(bfloat16{});
    case kFloat16: return call(float16{});
    default: return call(float{});
  }
}

inline float tree_of(V x) {
  float v[kLanes];
  __builtin_memcpy(v, &x, sizeof(v));
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t j = 0; j < half; ++j) v[j] += v[j + half];
  }
  return v[0];
}

// out[i * stride + j] = q_i . w_j, and squares[j] = |w_j|^2 if asked for.
template <int kQ, int kW, bool kSquares, class W>
inline void dot_tile(const float* q, const W* w, int64_t width, float* out, int64_t stride, float* squares) {
  V sum[kQ][kW] = {}, own[kW] = {};
  int64_t d = 0;
  for (; d + static_cast<int64_t>(kLanes) <= width; d += kLanes) {
    V word[kW];
    for (int j = 0; j < kW; ++j) {
      word[j] = load_lanes(w + j * width + d);
      __builtin_prefetch(reinterpret_cast<const char*>(w + (j + kW) * width + d) + 256);
      if constexpr (kSquares) own[j] = multiply_add(word[j], word[j], own[j]);
    }
    for (int i = 0; i < kQ; ++i) {
      const V query = load_lanes(q + i * width + d);
      for (int j = 0; j < kW; ++j) sum[i][j] = multiply_add(query, word[j], sum[i][j]);
    }
  }
  for (int j = 0; j < kW; ++j) {
    float rest[kQ] = {}, square = 0.0f;
    for (int64_t k = d; k < width; ++k) {
      const float x = to_math(w[j * width + k]);
      if constexpr (kSquares) square += x * x;
      for (int i = 0; i < kQ; ++i) rest[i] += q[i * width + k] * x;
    }
    for (int i = 0; i < kQ; ++i) out[i * stride + j] = tree_of(sum[i][j]) + rest[i];
    if constexpr (kSquares) squares[j] = tree_of(own[j]) + square;
  }
}

template <int kQ, bool kSquares, class W>
inline void dots(const float* q, const W* w, int64_t count, int64_t width, float* out, int64_t stride, float* squares) {
  constexpr int kW = kLanes >= 16 ? (kQ > 4 ? 3 : 4) : (kQ > 4 ? 1 : 2);
  int64_t j = 0;
  for (; j + kW <= count; j += kW) dot_tile<kQ, kW, kSquares>(q, w + j * width, width, out + j, stride, kSquares ? squares + j : nullptr);
  for (; j < count; ++j) dot_tile<kQ, 1, kSquares>(q, w + j * width, width, out + j, stride, kSquares ? squares + j : nullptr);
}

template <bool kSquares, class W>
inline void dots_of(const float* q, int64_t rows, const W* w, int64_t count, int64_t width, float* out, int64_t stride, float* squares) {
  switch (rows) {
    case 1: return dots<1, kSquares>(q, w, count, width, out, stride, squares);
    case 2: return dots<2, kSquares>(q, w, count, width, out, stride, squares);
    case 3: return dots<3, kSquares>(q, w, count, width, out, stride, squares);
    case 4: return dots<4, kSquares>(q, w, count, width, out, stride, squares);
    case 5: return dots<5, kSquares>(q, w, count, width, out, stride, squares);
    case 6: return dots<6, kSquares>(q, w, count, width, out, stride, squares);
    case 7: return dots<7, kSquares>(q, w, count, width, out, stride, squares);
    default: return dots<8, kSquares>(q, w, count, width, out, stride, squares);
  }
}

// Up to kQueries rows; squares [count] or null.
template <class W>
inline void token_dots(const float* q, int64_t rows, const W* w, int64_t count, int64_t width, float* out, int64_t stride, float* squares) {
  if (squares == nullptr) return dots_of<false>(q, rows, w, count, width, out, stride, squares);
  dots_of<true>(q, rows, w, count, width, out, stride, squares);
}

}  // namespace TF_NS
