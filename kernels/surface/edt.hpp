// One axis of the exact Euclidean distance transform, for a few columns at a time.
//
// The transform is separable: along the first axis a scan, along each further axis
//   out[q] = min over v of in[v] + ((q - v) s)^2.
// Two ways to take the minimum:
//   window   look at v = q +- 1, q +- 2, ... until (k s)^2 alone is no less than the best so far (Saito and Toriwaki, Pattern Recognition
//            27, 1994). As many operations as the distance has steps, but on 16 or 8 columns at a time.
//   hull     lower envelope of parabolas (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012), a fixed number of operations however
//            far features are, one column at a time. It also says where the minimum is.
#pragma once

#include <cmath>

#include "../core/room.hpp"

#if defined(TF_ISA_AVX512) || defined(TF_ISA_AVX2)
#include <immintrin.h>
#endif

namespace TF_NS {

// Columns that lie next to each other: one vector.
#if defined(TF_ISA_AVX512)
#define TF_EDT_BYTES 64
#elif defined(TF_ISA_AVX2)
#define TF_EDT_BYTES 32
#else
#define TF_EDT_BYTES 16
#endif
template <class T>
constexpr int64_t kColumns = TF_EDT_BYTES / static_cast<int64_t>(sizeof(T));

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(TF_EDT_BYTES)));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(TF_EDT_BYTES)));
};
template <class T>
using Column = typename Lanes<T>::type;

#if defined(TF_ISA_AVX512)
inline bool any_above(const Column<float>& x, float limit) {
  return _mm512_cmp_ps_mask(reinterpret_cast<const __m512&>(x), _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
}
inline bool any_above(const Column<double>& x, double limit) {
  return _mm512_cmp_pd_mask(reinterpret_cast<const __m512d&>(x), _mm512_set1_pd(limit), _CMP_GT_OQ) != 0;
}
#elif defined(TF_ISA_AVX2)
inline bool any_above(const Column<float>& x, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<const __m256&>(x), _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
}
inline bool any_above(const Column<double>& x, double limit) {
  return _mm256_movemask_pd(_mm256_cmp_pd(reinterpret_cast<const __m256d&>(x), _mm256_set1_pd(limit), _CMP_GT_OQ)) != 0;
}
#else
template <class V, class T>
inline bool any_above(const V& x, T limit) {
  const auto above = x > limit;
  uint64_t halves[2];
  std::memcpy(halves, &above, 16);
  return (halves[0] | halves[1]) != 0;
}
#endif

template <class V>
inline void lower(V& best, const V& other) {
  best = other < best ? other : best;
}

// How many steps a window may take on average before hulls are cheaper (kernels/surface/README.md).
constexpr int64_t kMostSteps = 160;

// tile[n] -> out[n], one vector of columns each; squares[k] = (k s)^2, n + 3 of them. False, with `out` unfinished, if that takes too long.
template <class T>
inline bool window_pass(const Column<T>* tile, int64_t n, const T* squares, Column<T>* out) {
  int64_t steps = 0;
  for (int64_t q = 0; q < n; ++q) {
    Column<T> best = tile[q];
    int64_t k = 1;
    const int64_t both = q < n - 1 - q ? q : n - 1 - q;
    bool open = any_above(best, squares[1]);
    while (open && k + 1 <= both) {  // two steps to a test
      Column<T> near = tile[q - k], next = tile[q - k - 1];
      lower(near, tile[q + k]);
      lower(next, tile[q + k + 1]);
      near += squares[k];
      next += squares[k + 1];
      lower(near, next);
      lower(best, near);
      k += 2;
      open = any_above(best, squares[k]);
    }
    for (; open && (q - k >= 0 || q + k < n); ++k) {
      if (q - k >= 0) lower(best, tile[q - k] + squares[k]);
      if (q + k < n) lower(best, tile[q + k] + squares[k]);
      open = any_above(best, squares[k + 1]);
    }
    out[q] = best;
    steps += k;
    if (steps > kMostSteps * (q + 8)) return false;
  }
  return true;
}

struct HullRoom {
  Room<int32_t> at;     // vertices of the envelope
  Room<int32_t> start;  // the first q at which each is the lowest
};

// One column of `heights`, `stride` apart. out[q] and, if not null, from[q] = the v of the minimum, -1 where there is none.
template <class T>
inline void hull_pass(const T* heights, int64_t stride, int64_t n, double s, HullRoom& room, T* out, int64_t out_stride, int32_t* from) {
  int32_t *const at = room.at.data(), *const start = room.start.data();
  const double ratio = 1.0 / (s * s);
  int64_t top = -1;
  for (int64_t v = 0; v < n; ++v) {
    const double mine = static_cast<double>(heights[v * stride]);
    if (!(mine < INFINITY)) continue;
    int64_t begin = 0;
    while (top >= 0) {
      const int64_t u = at[top];
      const double below = static_cast<double>(heights[u * stride]);
      const double meet = 0.5 * ((mine - below) * ratio / static_cast<double>(v - u) + static_cast<double>(v + u));
      const double first = std::ceil(meet);  // from here on v is no higher
      begin = first <= 0.0 ? 0 : first >= static_cast<double>(n) ? n : static_cast<int64_t>(first);
      if (begin > start[top]) break;
      --top;
      begin = 0;
    }
    if (begin >= n) continue;
    ++top;
    at[top] = static_cast<int32_t>(v);
    start[top] = static_cast<int32_t>(begin);
  }
  if (top < 0) {
    for (int64_t q = 0; q < n; ++q) {
      out[q * out_stride] = static_cast<T>(INFINITY);
      if (from != nullptr) from[q] = -1;
    }
    return;
  }
  for (int64_t k = 0; k <= top; ++k) {
    const int64_t v = at[k], end = k < top ? start[k + 1] : n;
    const T height = heights[v * stride];
    for (int64_t q = start[k]; q < end; ++q) {
      const double step = static_cast<double>(q - v) * s;
      out[q * out_stride] = static_cast<T>(static_cast<double>(height) + step * step);
      if (from != nullptr) from[q] = static_cast<int32_t>(v);
    }
  }
}

}  // namespace TF_NS
