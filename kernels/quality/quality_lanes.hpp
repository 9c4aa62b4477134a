// Registers of floats or doubles, rows of a picture brought into a room of the arithmetic's dtype and back, and the two filters.
#pragma once

#include "quality_api.hpp"

#include "../core/room.hpp"
#include "../softdice/softdice_lanes.hpp"

#include <utility>

namespace TF_NS {

using namespace tenfold;

TF_HD V fused(V a, V b, V c) { return multiply_add(a, b, c); }
TF_HD D fused(D a, D b, D c) {
#if defined(TF_ISA_AVX512)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(TF_ISA_AVX2)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(TF_ISA_NEON)
  return vfmaq_f64(c, a, b);
#else
  return multiply_add(a, b, c);
#endif
}

// The first n lanes, zeros in the others, whatever was there.
template <class M>
TF_HD lanes_t<M> first_lanes(lanes_t<M> a, int64_t n) {
  constexpr int64_t kW = LanesOf<M>::count;
  M each[kW];
  store_lanes(each, a);
  for (int64_t j = n; j < kW; ++j) each[j] = 0;
  return load_lanes(each);
}

// ---- rows ---------------------------------------------------------------------------------------------------------------------------

TF_HD float to_math(uint8_t x) { return static_cast<float>(x); }

template <class M, class T>
void widen(const T* from, int64_t stride, int64_t n, M scale, M shift, M* to) {
  int64_t i = 0;
  if constexpr (sizeof(M) == sizeof(float) && !std::is_same<T, uint8_t>::value && !std::is_same<T, double>::value) {
    if (stride == 1) {
      for (; i + kLanes <= n; i += kLanes) store_lanes(to + i, load_lanes(from + i) * scale - shift);
    }
  }
  if (stride == 1) {  // known to the compiler, it makes lanes of it
    for (; i < n; ++i) to[i] = static_cast<M>(to_math(from[i])) * scale - shift;
  }
  for (; i < n; ++i) to[i] = static_cast<M>(to_math(from[i * stride])) * scale - shift;
}

template <class T>
TF_HD T* pixel(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column) {
  return static_cast<T*>(image.data) + b * image.batch_stride + c * image.channel_stride + row * image.row_stride +
         column * image.column_stride;
}

// n pixels times scale minus shift.
template <class M>
void load_row(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column, int64_t n, M scale, M shift, M* to) {
  const int64_t stride = image.column_stride;
  switch (image.dtype) {
    case kFloat64: return widen(pixel<double>(image, b, c, row, column), stride, n, scale, shift, to);
    case kBFloat16: return widen(pixel<bfloat16>(image, b, c, row, column), stride, n, scale, shift, to);
    case kFloat16: return widen(pixel<float16>(image, b, c, row, column), stride, n, scale, shift, to);
    case kQualityByte: return widen(pixel<uint8_t>(image, b, c, row, column), stride, n, scale, shift, to);
    default: return widen(pixel<float>(image, b, c, row, column), stride, n, scale, shift, to);
  }
}

template <class T, class M>
void narrow(const M* from, int64_t stride, int64_t n, T* to) {
  int64_t i = 0;
  if constexpr (sizeof(M) == sizeof(float)) {
    if (stride == 1) {
      for (; i + kLanes <= n; i += kLanes) store_lanes(to + i, load_lanes(from + i));
    }
  }
  for (; i < n; ++i) to[i * stride] = Round<T>::nearest(static_cast<math_t<T>>(from[i]));
}

// A gradient has the arithmetic's dtype, or one that is narrower.
template <class M>
void store_row(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column, int64_t n, const M* from) {
  const int64_t stride = image.column_stride;
  switch (image.dtype) {
    case kFloat64:
      if constexpr (sizeof(M) == sizeof(double)) narrow(from, stride, n, pixel<double>(image, b, c, row, column));
      return;
    case kBFloat16: return narrow(from, stride, n, pixel<bfloat16>(image, b, c, row, column));
    case kFloat16: return narrow(from, stride, n, pixel<float16>(image, b, c, row, column));
    default: return narrow(from, stride, n, pixel<float>(image, b, c, row, column));
  }
}

// ---- filters ------------------------------------------------------------------------------------------------------------------------

constexpr int kRows = 8;  // rows made at a time: as many sums in registers as hide the latency of an fma

template <class M, int kTaps>
struct Weights {
  lanes_t<M> half[(kTaps + 1) / 2];  // they are symmetric
  explicit Weights(const QualityArgs& a) {
    for (int k = 0; k < (kTaps + 1) / 2; ++k) half[k] = all_lanes<M>(static_cast<M>(a.weights[k]));
  }
  template <int k>
  TF_HD lanes_t<M> at() const {
    return half[k < kTaps - 1 - k ? k : kTaps - 1 - k];
  }
};

template <int kTaps, int from, int to, class M>
TF_HD void tap(const Weights<M, kTaps>& w, lanes_t<M> value, lanes_t<M>* sums) {
  if constexpr (from >= to && from < to + kTaps) sums[to] = fused(w.template at<from - to>(), value, sums[to]);
}
template <int kTaps, int from, class M, int... to>
TF_HD void taps(const Weights<M, kTaps>& w, lanes_t<M> value, lanes_t<M>* sums, std::integer_sequence<int, to...>) {
  (tap<kTaps, from, to>(w, value, sums), ...);
}
template <int kTaps, class M, class Value, int... from>
TF_HD void down(const Weights<M, kTaps>& w, const Value& value, lanes_t<M>* sums, std::integer_sequence<int, from...>) {
  (taps<kTaps, from>(w, value(from), sums, std::make_integer_sequence<int, kRows>{}), ...);
}
// kRows weighted sums of kRows + kTaps - 1 rows; value(row) is one register of a row.
template <int kTaps, class M, class Value>
TF_HD void filter_down(const Weights<M, kTaps>& w, const Value& value, lanes_t<M>* sums) {
  for (int i = 0; i < kRows; ++i) sums[i] = lanes_t<M>{};
  down(w, value, sums, std::make_integer_sequence<int, kRows + kTaps - 1>{});
}

template <int k, class M, int kTaps, int... field>
TF_HD void across(const Weights<M, kTaps>& w, const M* at, int64_t apart, lanes_t<M>* sums, std::integer_sequence<int, field...>) {
  ((sums[field] = fused(w.template at<k>(), load_lanes(at + field * apart + k), sums[field])), ...);
}
template <int kFields, class M, int kTaps, int... k>
TF_HD void all_across(const Weights<M, kTaps>& w, const M* at, int64_t apart, lanes_t<M>* sums, std::integer_sequence<int, k...>) {
  (across<k>(w, at, apart, sums, std::make_integer_sequence<int, kFields>{}), ...);
}
// Weighted sums of kTaps neighbours, of kFields rows that lie `apart`.
template <int kFields, class M, int kTaps>
TF_HD void filter_across(const Weights<M, kTaps>& w, const M* at, int64_t apart, lanes_t<M>* sums) {
  for (int field = 0; field < kFields; ++field) sums[field] = lanes_t<M>{};
  all_across<kFields>(w, at, apart, sums, std::make_integer_sequence<int, kTaps>{});
}

}  // namespace TF_NS
