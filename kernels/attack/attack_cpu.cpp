// Losses, noise, guidance, sign steps and splicing on the CPU: each tensor read once, in pieces that do not depend on the number of
// threads. Bound by memory; at the sizes of latents, by the call.
#include "attack.hpp"

#include "../core/parallel.hpp"
#include "../core/reduce.hpp"
#include "../core/tiles.hpp"

namespace TF_NS {

void simplex_project(const SimplexProjectArgs& a);
void ste_adam_simplex(const SteAdamArgs& a);
void sample_rows(const DrawArgs& a);
void nearest_token(const NearestArgs& a);

namespace {

constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 8;  // pieces per thread at least

// work(row, first, last) over pieces of rows.
template <class Work>
void each_piece(int64_t batch, int64_t size, int threads, const Work& work) {
  const int64_t pieces = pieces_of(size, kPiece);
  parallel_ranges(
      batch * pieces, threads,
      [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
          const int64_t first = piece % pieces * kPiece;
          work(piece / pieces, first, smaller(first + kPiece, size));
        }
      },
      kGrain);
}

inline double each(const LatentArgs& a, int which, int64_t row) { return a.each[which][row * a.step[which]]; }

template <class T>
const T* in(const LatentArgs& a, int which, int64_t row) {
  return static_cast<const T*>(a.in[which]) + row * a.size;
}
template <class T>
T* out(const LatentArgs& a, int which, int64_t row) {
  return static_cast<T*>(a.out[which]) + row * a.size;
}
template <class T>
T rounded(math_t<T> x) {
  return Round<T>::nearest(x);
}

template <class T>
void add_noise(const LatentArgs& a, int64_t row, int64_t first, int64_t last) {
  using M = math_t<T>;
  const int64_t t = a.times[row * a.times_step];
  const double level = t >= 0 && t < a.levels ? a.each[0][t] : __builtin_nan("");
  const M keep = static_cast<M>(sqrt(level)), more = static_cast<M>(sqrt(1.0 - level));
  const T* const __restrict x = in<T>(a, 0, row), * const __restrict e = in<T>(a, 1, row);
  T* const __restrict z = out<T>(a, 0, row);
  for (int64_t k = first; k < last; ++k) z[k] = rounded<T>(keep * to_math(x[k]) + more * to_math(e[k]));
}

template <class T>
void step(const LatentArgs& a, int64_t row, int64_t first, int64_t last) {
  using M = math_t<T>;
  const StepWeights w = step_weights(each(a, 1, row), each(a, 2, row), a.kind);
  const M of_x = static_cast<M>(w.of_x), of_out = static_cast<M>(w.of_out), guidance = static_cast<M>(each(a, 0, row));
  const bool plain = a.in[1] == nullptr;
  const T* const __restrict x = in<T>(a, 0, row), * const __restrict u = plain ? in<T>(a, 2, row) : in<T>(a, 1, row), * const __restrict c = in<T>(a, 2, row);
  T* const __restrict z = out<T>(a, 0, row);
  if (plain) {
    for (int64_t k = first; k < last; ++k) z[k] = rounded<T>(of_x * to_math(x[k]) + of_out * to_math(c[k]));
  } else {
    for (int64_t k = first; k < last; ++k) {
      z[k] = rounded<T>(of_x * to_math(x[k]) + of_out * guided(static_cast<M>(to_math(u[k])), static_cast<M>(to_math(c[k])), guidance));
    }
  }
  if (a.flag) {
    T* const again = z + a.batch * a.size;
    for (int64_t k = first; k < last; ++k) again[k] = z[k];
  }
}

template <class T>
void safe(const LatentArgs& a, int64_t row, int64_t first, int64_t last) {
  using M = math_t<T>;
  const M guidance = static_cast<M>(each(a, 0, row));
  const T *const u = in<T>(a, 0, row), *const c = in<T>(a, 1, row), *const s = in<T>(a, 2, row), *const v = in<T>(a, 3, row);
  T* const __restrict z = out<T>(a, 0, row), * const __restrict after = out<T>(a, 1, row);
  for (int64_t k = first; k < last; ++k) {
    const Safe<M> found = safe_step<M>(a, to_math(u[k]), to_math(c[k]), to_math(s[k]), to_math(v[k]), guidance);
    z[k] = rounded<T>(found.out);
    after[k] = rounded<T>(found.after);
  }
}

// number: lr, eps. in: gradient, origin or null.
template <class T>
math_t<T> sign_moved(const LatentArgs& a, const T* x, const T* g, const T* origin, int64_t k) {
  using M = math_t<T>;
  return to_math(x[k]) - static_cast<M>(a.number[0]) * sign_of<M>(to_math(g[k])) - (origin == nullptr ? M(0) : to_math(origin[k]));
}

template <class T>
void sign_linf(const LatentArgs& a, int64_t row, int64_t first, int64_t last) {
  using M = math_t<T>;
  T* const x = out<T>(a, 0, row);
  const T *const g = in<T>(a, 0, row), *const origin = a.in[1] == nullptr ? nullptr : in<T>(a, 1, row);
  const M eps = static_cast<M>(a.flag ? a.number[1] : __builtin_inf());
  for (int64_t k = first; k < last; ++k) {
    M far = sign_moved<T>(a, x, g, origin, k);
    far = far > eps ? eps : (far < -eps ? -eps : far);
    x[k] = rounded<T>((origin == nullptr ? M(0) : to_math(origin[k])) + far);
  }
}

template <class T>
void sign_l2(const LatentArgs& a, int64_t row) {
  using M = math_t<T>;
  T* const x = out<T>(a, 0, row);
  const T *const g = in<T>(a, 0, row), *const origin = a.in[1] == nullptr ? nullptr : in<T>(a, 1, row);
  double sum = 0.0;
  for (int64_t k = 0; k < a.size; ++k) {
    const double far = static_cast<double>(sign_moved<T>(a, x, g, origin, k));
    sum += far * far;
  }
  const double length = sqrt(sum);
  const M factor = static_cast<M>(length > a.number[1] ? a.number[1] / length : 1.0);
  for (int64_t k = 0; k < a.size; ++k) {
    x[k] = rounded<T>((origin == nullptr ? M(0) : to_math(origin[k])) + sign_moved<T>(a, x, g, origin, k) * factor);
  }
}

void rows(const LatentArgs& a) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.op == kSignL2) {
      parallel_ranges(a.batch, a.threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) sign_l2<T>(a, row);
      });
      return;
    }
    each_piece(a.batch, a.size, a.threads, [&](int64_t row, int64_t first, int64_t last) {
      switch (a.op) {
        case kAddNoise: return add_noise<T>(a, row, first, last);
        case kStep: return step<T>(a, row, first, last);
        case kSafe: return safe<T>(a, row, first, last);
        default: return sign_linf<T>(a, row, first, last);
      }
    });
  });
}

// ---- means of differences --------------------------------------------------------------------------------------------------------

template <class T>
struct Difference {
  const T *pred, *target, *other;
  math_t<T> eta;
  Difference(const GuidedMseArgs& a, int64_t row)
      : pred(static_cast<const T*>(a.pred) + row * a.size),
        target(static_cast<const T*>(a.target) + row * a.size),
        other(a.other == nullptr ? target : static_cast<const T*>(a.other) + row * a.size),
        eta(static_cast<math_t<T>>(a.other == nullptr ? 0.0 : a.eta)) {}
  math_t<T> operator()(int64_t k) const {
    const math_t<T> x = to_math(pred[k]), y = to_math(target[k]);
    return eta == 0 ? x - y : apart<math_t<T>>(x, y, to_math(other[k]), eta);
  }
};

void mse(const GuidedMseArgs& a) {
  const int64_t pieces = pieces_of(a.size, kMsePiece);
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(
        a.batch * pieces, a.threads,
        [&](int64_t begin, int64_t end) {
          for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t first = piece % pieces * kMsePiece, last = smaller(first + kMsePiece, a.size);
            const Difference<T> difference(a, piece / pieces);
            double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            const auto add = [&](int64_t k, int64_t j) {
              const double far = static_cast<double>(difference(k));
              part[j] += a.squares ? far * far : (far < 0.0 ? -far : far);
            };
            int64_t k = first;
            for (; k + 8 <= last; k += 8) {
              for (int64_t j = 0; j < 8; ++j) add(k + j, j);
            }
            for (int64_t j = 0; k < last; ++k, ++j) add(k, j);
            a.sums[piece] = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
          }
        },
        kGrain);
  });
}

void mse_backward(const GuidedMseArgs& a) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    using M = math_t<T>;
    each_piece(a.batch, a.size, a.threads, [&](int64_t row, int64_t first, int64_t last) {
      const Difference<T> difference(a, row);
      const M scale = static_cast<M>(a.grad[row] / static_cast<double>(a.size));
      T* const __restrict to = static_cast<T*>(a.out) + row * a.size;
      for (int64_t k = first; k < last; ++k) {
        const M far = difference(k);
        to[k] = rounded<T>((a.squares ? M(2) * far : sign_of<M>(far)) * scale);
      }
    });
  });
}

// ---- splicing --------------------------------------------------------------------------------------------------------------------

constexpr int kBytesOf[] = {4, 8, 2, 2};

void splice(const SpliceArgs& a) {
  const int64_t row = a.width * kBytesOf[a.dtype];
  const auto* const embeds = static_cast<const char*>(a.embeds);
  const auto* const adv = static_cast<const char*>(a.adv);
  parallel_ranges(
      a.batch * a.columns, a.threads,
      [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t from = a.index[at], b = at / a.columns;
          const bool own = from < a.columns;
          if (from < 0 || from >= a.columns + a.extra) continue;
          memcpy(static_cast<char*>(a.out) + at * row,
                 own ? embeds + (b * a.columns + from) * row : adv + (b * a.extra + from - a.columns) * row, static_cast<size_t>(row));
        }
      },
      64);
}

// Each row of embeds and adv looks for where it went.
void splice_backward(const SpliceArgs& a) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    using M = math_t<T>;
    const int64_t sources = a.columns + a.extra;
    parallel_ranges(
        a.batch * sources, a.threads,
        [&](int64_t begin, int64_t end) {
          for (int64_t source = begin; source < end; ++source) {
            const int64_t b = source / sources, from = source % sources;
            T* const to = from < a.columns ? static_cast<T*>(a.grad_embeds) + (b * a.columns + from) * a.width
                                           : static_cast<T*>(a.grad_adv) + (b * a.extra + from - a.columns) * a.width;
            const int64_t* const index = a.index + b * a.columns;
            for (int64_t d = 0; d < a.width; ++d) {
              M sum = 0;
              for (int64_t c = 0; c < a.columns; ++c) {
                if (index[c] == from) sum += to_math(static_cast<const T*>(a.grad)[(b * a.columns + c) * a.width + d]);
              }
              to[d] = rounded<T>(sum);
            }
          }
        },
        16);
  });
}

}  // namespace

extern const tenfold::AttackKernels attack_kernels;
const tenfold::AttackKernels attack_kernels = {simplex_project, ste_adam_simplex, sample_rows,    nearest_token, rows, mse,
                                               mse_backward,    splice,           splice_backward};

}  // namespace TF_NS
