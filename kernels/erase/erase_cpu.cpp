// Saliency sums and masked Adam on the CPU: traversal only, the math of a weight stands in erase.hpp. Compiled once per instruction set.
//
// A step in float32 moves 28 bytes per weight and computes a dozen operations; a sum moves 12. Memory bounds both.
#include "erase_tile.hpp"

#include <type_traits>

namespace TF_NS {
namespace {

using namespace tenfold;

// -- sums --------------------------------------------------------------------------------------------------------------------------

// A row of another type as one of A: itself where the types are the same, else in `room`.
template <class A, class T>
const A* as_row(const void* data, int64_t first, int64_t n, A* __restrict room) {
  const T* from = static_cast<const T*>(data) + first;
  if constexpr (std::is_same_v<A, T>) {
    return from;
  } else if constexpr (std::is_same_v<A, math_t<T>>) {
    widen_row(from, 1, n, room);
    return room;
  } else {
    for (int64_t i = 0; i < n; ++i) room[i] = static_cast<A>(to_math(from[i]));
    return room;
  }
}

template <class A>
const A* row_of(int dtype, const void* data, int64_t first, int64_t n, A* room) {
  const A* row = nullptr;
  with_type(dtype, [&](auto type) { row = as_row<A, decltype(type)>(data, first, n, room); });
  return row;
}

template <int kMode, class A>
void sum_row(A* __restrict acc, const A* __restrict g, const A* __restrict w, int64_t n) {
  for (int64_t i = 0; i < n; ++i) acc[i] = saliency<kMode>(acc[i], g[i], kMode == kProduct ? w[i] : A(0));
}

template <class A>
void sum_tiles(const EraseSumArgs& a) {
  each_tile(a.tensors, a.count, a.threads, [&](const auto& tiles) {
    alignas(64) A room_g[kTile], room_w[kTile];
    tiles([&](int64_t t, int64_t first, int64_t n) {
      const EraseSumTensor& tensor = a.tensors[t];
      A* acc = static_cast<A*>(tensor.acc) + first;
      const A* g = row_of<A>(a.grad_dtype, tensor.grad, first, n, room_g);
      if (a.mode == kProduct) return sum_row<kProduct>(acc, g, row_of<A>(a.weight_dtype, tensor.weight, first, n, room_w), n);
      a.mode == kAbs ? sum_row<kAbs, A>(acc, g, nullptr, n) : sum_row<kSigned, A>(acc, g, nullptr, n);
    });
  });
}

void sum(const EraseSumArgs& a) { a.acc_dtype == kFloat64 ? sum_tiles<double>(a) : sum_tiles<float>(a); }

// -- masked Adam -------------------------------------------------------------------------------------------------------------------

// Flags as numbers of the width of a weight's math: compilers make vectors of a blend by them.
template <class M>
using flag_t = std::conditional_t<sizeof(M) == sizeof(double), int64_t, int32_t>;

template <class M>
void spread_bits(const uint8_t* __restrict bits, int64_t n, flag_t<M>* __restrict live) {
  for (int64_t b = 0; b < (n + 7) / 8; ++b) {
    const flag_t<M> byte = bits[b];
    for (int j = 0; j < 8; ++j) live[8 * b + j] = byte & (flag_t<M>(1) << j);
  }
}

inline bool all_clear(const uint8_t* bits, int64_t n) {
  uint32_t any = 0;
  for (int64_t b = 0; b < (n + 7) / 8; ++b) any |= bits[b];
  return any == 0;
}

template <class M>
void adam_row(M* __restrict p, const M* __restrict g, M* __restrict m, M* __restrict v, const flag_t<M>* __restrict live, int64_t n,
              const MaskedAdamScalars<M> s) {
  for (int64_t i = 0; i < n; ++i) {
    M weight = p[i], mean = m[i], square = v[i];
    masked_adam_element(g[i], weight, mean, square, s);
    p[i] = live[i] ? weight : p[i];
    m[i] = live[i] ? mean : m[i];
    v[i] = live[i] ? square : v[i];
  }
}

typedef uint16_t __attribute__((may_alias)) half_bits;

// Rounds `from` into `to` where the element is live; a half is chosen as bits, so that not even a NaN changes.
template <class T>
void put_row(const math_t<T>* from, int64_t n, T* to, const flag_t<math_t<T>>* __restrict live) {
  static_assert(sizeof(T) == sizeof(half_bits), "wider types are written in place");
  alignas(64) T fresh[kTile];
  narrow_row(from, n, fresh, 1);
  half_bits* __restrict old = reinterpret_cast<half_bits*>(to);
  const half_bits* __restrict rounded = reinterpret_cast<const half_bits*>(fresh);
  for (int64_t i = 0; i < n; ++i) old[i] = live[i] ? rounded[i] : old[i];
}

// T: weights and gradients, S: moments.
template <class T, class S>
void adam_tile(const EraseAdamTensor& t, int64_t first, int64_t n, const MaskedAdamScalars<math_t<T>>& s) {
  using M = math_t<T>;
  constexpr bool kWhole = std::is_same_v<T, M>, kStates = std::is_same_v<S, M>;
  alignas(64) flag_t<M> live[kTile];
  alignas(64) M room_g[kTile], room_p[kTile], room_m[kTile], room_v[kTile];
  T* to = static_cast<T*>(t.param) + first;
  S *mean = static_cast<S*>(t.exp_avg) + first, *square = static_cast<S*>(t.exp_avg_sq) + first;
  spread_bits<M>(t.bits + first / 8, n, live);
  const M* g = as_row<M, T>(t.grad, first, n, room_g);
  M *p = room_p, *m = room_m, *v = room_v;
  if constexpr (kWhole) {
    p = to;
  } else {
    widen_row(to, 1, n, p);
  }
  if constexpr (kStates) {
    m = mean;
    v = square;
  } else {
    widen_row(mean, 1, n, m);
    widen_row(square, 1, n, v);
  }
  adam_row<M>(p, g, m, v, live, n, s);
  if constexpr (!kWhole) put_row<T>(p, n, to, live);
  if constexpr (!kStates) {
    put_row<S>(m, n, mean, live);
    put_row<S>(v, n, square, live);
  }
}

template <class T, class S>
void adam_tiles(const EraseAdamArgs& a) {
  const MaskedAdamScalars<math_t<T>> s = masked_adam_scalars<math_t<T>>(a);
  each_tile(a.tensors, a.count, a.threads, [&](const auto& tiles) {
    tiles([&](int64_t t, int64_t first, int64_t n) {
      if (!all_clear(a.tensors[t].bits + first / 8, n)) adam_tile<T, S>(a.tensors[t], first, n, s);
    });
  });
}

void adam(const EraseAdamArgs& a) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == sizeof(half_bits)) {
      a.state_dtype == a.dtype ? adam_tiles<T, T>(a) : adam_tiles<T, float>(a);
    } else {
      adam_tiles<T, T>(a);
    }
  });
}

}  // namespace

extern const tenfold::EraseKernels erase_kernels;
const tenfold::EraseKernels erase_kernels = {erase_sample, erase_bracket, erase_bits, sum, adam};

}  // namespace TF_NS
