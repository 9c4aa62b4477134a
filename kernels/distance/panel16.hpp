// The product of panel.hpp in 16-bit integers, twice as fast where the processor multiplies and adds pairs of them in one step (AVX-512
// VNNI). bfloat16 would be the other choice of that width, but its instruction is slower than float32's on processors without AMX, and it
// keeps 8 bits where these keep 12.
//
// A row x is held as s q with integers |q| <= kMost, s = max |x| / kMost; what that leaves out, e = x - s q, is measured, so that a product
// is known within |e_a| |b| + |a| |e_b|. kDepth16 products of kMost^2 fit an int32, so integer sums are exact.
#pragma once

#include "panel.hpp"

namespace TF_NS {

constexpr int64_t kDepth16 = 256;
constexpr int kMost = 2896;
static_assert(kDepth16 * kMost * kMost < (int64_t{1} << 31), "sums of a chunk fit");

constexpr int64_t even(int64_t d) { return d + d % 2; }

#if defined(TF_ISA_AVX512)
inline bool has_integer_products() { return __builtin_cpu_supports("avx512vnni") != 0; }

// to[0 .. even(d)) = the integers of `row`; returns s, and |e| / |row| in `share`.
inline float quantise(const float* row, int64_t d, float square, int16_t* to, float* share) {
  __m512 top = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 16 <= d; k += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(row + k)));
  const __mmask16 rest = static_cast<__mmask16>((1u << (d - k)) - 1u);
  top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_maskz_loadu_ps(rest, row + k)));
  const float most = _mm512_reduce_max_ps(top);
  const float s = most * (1.0f / kMost);
  *share = 0.0f;
  if (!(s > 0.0f) || !(most < 3.0e38f) || 1.0f / s > 3.0e38f) {  // nothing but zeros, or beyond what the integers can scale
    for (k = 0; k < even(d); ++k) to[k] = 0;
    *share = square > 0.0f ? 1.0f : 0.0f;
    return 0.0f;
  }
  const __m512 inverse = _mm512_set1_ps(1.0f / s), scale = _mm512_set1_ps(s);
  const __m512i limit = _mm512_set1_epi32(kMost);
  __m512 error = _mm512_setzero_ps();
  for (k = 0; k < d; k += 16) {
    const __mmask16 here = d - k < 16 ? rest : static_cast<__mmask16>(0xFFFF);
    const __m512 x = _mm512_maskz_loadu_ps(here, row + k);
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    q = _mm512_max_epi32(_mm512_min_epi32(q, limit), _mm512_sub_epi32(_mm512_setzero_si512(), limit));
    const __m512 left = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(q), scale, x);
    error = _mm512_fmadd_ps(left, left, error);
    const __mmask16 written = d - k < 16 ? static_cast<__mmask16>((1u << (even(d) - k)) - 1u) : static_cast<__mmask16>(0xFFFF);
    _mm512_mask_cvtepi32_storeu_epi16(to + k, written, q);
  }
  *share = square > 0.0f ? 1.001f * sqrt(_mm512_reduce_add_ps(error) / square) : 0.0f;
  return s;
}

// Column j of the panels is row j of `rows` [columns][stride]: pairs of depths side by side, [depth / 2][kPanel][2].
inline void pack_panels16(const int16_t* rows, int64_t stride, int64_t columns, int64_t depth, int16_t* to) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t here = columns - first < kPanel ? columns - first : kPanel;
    int16_t* panel = to + first * depth;
    if (here < kPanel) memset(panel, 0, static_cast<size_t>(kPanel * depth) * sizeof(int16_t));
    for (int64_t j = 0; j < here; ++j) {
      const int16_t* row = rows + (first + j) * stride;
      for (int64_t k = 0; k < depth; ++k) panel[(k / 2 * kPanel + j) * 2 + k % 2] = row[k];
    }
  }
}

// sum += pairs of a times pairs of b. Not the intrinsic: GCC 12 copies the sums around it, which spills them.
TF_HD __m512i add_pairs(__m512i sum, __m512i a, __m512i b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

template <bool add>
inline void product_group16(const int16_t* a, int64_t a_row, const float* row_scale, const int16_t* panel, const float* scale,
                            int64_t depth, float* c, int64_t c_row) {
  __m512i sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[r][j] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512i lanes[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) lanes[j] = _mm512_loadu_si512(panel + k * kPanel + j * 2 * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      memcpy(&pair, a + r * a_row + k, sizeof(pair));
      const __m512i factor = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = add_pairs(sum[r][j], factor, lanes[j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + r * c_row + j * kWidth;
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(row_scale[r]), _mm512_loadu_ps(scale + j * kWidth));
      const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][j]), factor);
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), part) : part);
    }
  }
}

// As panel_product, for even `depth`.
inline void panel_product16(const int16_t* a, int64_t a_row, const float* row_scale, int64_t rows, const int16_t* panels,
                            const float* scale, int64_t columns, int64_t depth, float* c, int64_t c_row, Ahead& ahead) {
  for (int64_t k = 0; k < depth; k += kDepth16) {
    const int64_t steps = depth - k < kDepth16 ? depth - k : kDepth16;
    for (int64_t j = 0; j < columns; j += kPanel) {
      const int16_t* panel = panels + j * depth + k * kPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        ahead.fetch(steps);
        if (k == 0) {
          product_group16<false>(a + r * a_row + k, a_row, row_scale + r, panel, scale + j, steps, c + r * c_row + j, c_row);
        } else {
          product_group16<true>(a + r * a_row + k, a_row, row_scale + r, panel, scale + j, steps, c + r * c_row + j, c_row);
        }
      }
    }
  }
}
#else
inline bool has_integer_products() { return false; }
#endif

}  // namespace TF_NS
