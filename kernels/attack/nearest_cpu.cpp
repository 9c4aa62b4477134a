// The nearest word embedding on the CPU. Up to eight queries see the table once, in pieces of 64 words whose scores lie in the first-level
// cache: bound by reading the table. Of each query the best score and the next are kept; where they are closer than kNear, those near the
// best are compared again in double, in a second reading for that query. With more queries the products come from a matrix product, a part
// of the table at a time (attack_native.py).
#include "attack.hpp"
#include "token_dots.hpp"

#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kTokens = 64;
constexpr int64_t kSlice = 2048;  // tokens of a piece of work
const float kNothing = -__builtin_inff();

inline void take(TokenFound& f, float score, int64_t at) {
  if (score > f.best) {
    f.next = f.best;
    f.best = score;
    f.at = at;
  } else {
    f.next = score > f.next ? score : f.next;
  }
}

// b lies behind a.
inline TokenFound joined(const TokenFound& a, const TokenFound& b) {
  if (a.at < 0) return b;
  if (b.at < 0) return a;
  if (b.best > a.best) return {b.best, a.best > b.next ? a.best : b.next, b.at};
  return {a.best, b.best > a.next ? b.best : a.next, a.at};
}

inline double wide_square(const float* q, int64_t width) {
  double sum = 0.0;
  for (int64_t d = 0; d < width; ++d) sum += static_cast<double>(q[d]) * static_cast<double>(q[d]);
  return sum;
}

inline Scale scale_of(const NearestArgs& a, int64_t r) { return scale_by(wide_square(a.q + r * a.width, a.width), a.cosine); }

// weights[j] of `count` words from `first` on; squares are |w|^2 where they had to be made.
inline void word_weights(const NearestArgs& a, int64_t first, int64_t count, const float* squares, float* weights) {
  for (int64_t j = 0; j < count; ++j) {
    weights[j] = a.inv_norm != nullptr ? a.inv_norm[first + j] : word_weight(squares[j], a.cosine);
  }
}

// The best of a block of scores, with the index by a second look at the rare block that improves.
inline void take_block(const NearestArgs& a, const Scale& scale, const float* products, const float* weights, int64_t first, int64_t count,
                       float* scores, TokenFound& f) {
  float top = kNothing;
  for (int64_t j = 0; j < count; ++j) scores[j] = scale(products[j], weights[j]);
  if (a.mask != nullptr) {
    for (int64_t j = 0; j < count; ++j) scores[j] = a.mask[first + j] != 0 ? scores[j] : kNothing;
  }
  float lane[16];
  for (int l = 0; l < 16; ++l) lane[l] = kNothing;
  int64_t j = 0;
  for (; j + 16 <= count; j += 16) {
    for (int l = 0; l < 16; ++l) lane[l] = scores[j + l] > lane[l] ? scores[j + l] : lane[l];
  }
  for (; j < count; ++j) lane[0] = scores[j] > lane[0] ? scores[j] : lane[0];
  for (const float x : lane) top = x > top ? x : top;
  if (f.at >= 0 && top <= f.next) return;
  for (int64_t k = 0; k < count; ++k) {
    if ((a.mask == nullptr || a.mask[first + k] != 0) && scores[k] >= kNothing) {  // a number
      if (f.at < 0) {
        f = {scores[k], kNothing, first + k};
      } else {
        take(f, scores[k], first + k);
      }
    }
  }
}

template <class W>
void search(const NearestArgs& a, int64_t row, int64_t rows, const Scale* scales, int64_t slice, TokenFound* found) {
  alignas(64) float products[kQueries * kTokens], squares[kTokens], weights[kTokens], scores[kTokens];
  for (int64_t i = 0; i < rows; ++i) found[i] = {kNothing, kNothing, -1};
  const int64_t end = a.columns < (slice + 1) * kSlice ? a.columns : (slice + 1) * kSlice;
  for (int64_t first = slice * kSlice; first < end; first += kTokens) {
    const int64_t count = end - first < kTokens ? end - first : kTokens;
    const W* const w = static_cast<const W*>(a.table) + first * a.width;
    token_dots(a.q + row * a.width, rows, w, count, a.width, products, kTokens, a.inv_norm == nullptr ? squares : nullptr);
    word_weights(a, first, count, squares, weights);
    for (int64_t i = 0; i < rows; ++i) take_block(a, scales[i], products + i * kTokens, weights, first, count, scores, found[i]);
  }
}

template <class W>
double exact_of(const NearestArgs& a, const float* q, double square, int64_t at) {
  const W* const w = static_cast<const W*>(a.table) + at * a.width;
  double product = 0.0, own = 0.0;
  for (int64_t d = 0; d < a.width; ++d) {
    const double x = static_cast<double>(to_math(w[d]));
    product += static_cast<double>(q[d]) * x;
    own += x * x;
  }
  return exact_score(product, own, square, a.cosine);
}

// All words whose float score is near the best, in double; scores are made anew, 64 words at a time.
template <class W>
void decide(const NearestArgs& a, int64_t r, double square, const Scale& scale, TokenFound& f, float bound) {
  alignas(64) float products[kTokens], squares[kTokens], weights[kTokens];
  const float* const q = a.q + r * a.width;
  // The matrix product adds in another order than token_dots: look a little further.
  const float low = bound - (f.best - bound);
  double best = -static_cast<double>(__builtin_inff());
  int64_t at = f.at;
  for (int64_t first = 0; first < a.columns; first += kTokens) {
    const int64_t count = a.columns - first < kTokens ? a.columns - first : kTokens;
    const W* const w = static_cast<const W*>(a.table) + first * a.width;
    token_dots(q, 1, w, count, a.width, products, kTokens, a.inv_norm == nullptr ? squares : nullptr);
    word_weights(a, first, count, squares, weights);
    for (int64_t j = 0; j < count; ++j) {
      if ((a.mask != nullptr && a.mask[first + j] == 0) || !(scale(products[j], weights[j]) >= low)) continue;
      const double exact = exact_of<W>(a, q, square, first + j);
      if (exact > best) {
        best = exact;
        at = first + j;
      }
    }
  }
  f.at = at;
  f.best = static_cast<float>(best);
}

template <class W>
void finish(const NearestArgs& a, int64_t r, const Scale& scale, TokenFound f) {
  const float* const q = a.q + r * a.width;
  const double square = wide_square(q, a.width);
  if (!(square < __builtin_inf())) f.at = -1;
  const float bound = near_bound(f.best, square, a.width, a.cosine);
  if (f.at >= 0 && f.next >= bound) {
    decide<W>(a, r, square, scale, f, bound);
  } else if (f.at >= 0) {
    f.best = static_cast<float>(exact_of<W>(a, q, square, f.at));
  }
  a.ids[r] = f.at;
  a.scores[r] = f.at < 0 ? __builtin_nanf("") : f.best;
}

template <class W>
void nearest_few(const NearestArgs& a) {
  const int64_t slices = (a.columns + kSlice - 1) / kSlice;
  Room<TokenFound> room;
  TokenFound* const found = room.take(slices * kQueries);
  for (int64_t row = 0; row < a.rows; row += kQueries) {
    const int64_t rows = a.rows - row < kQueries ? a.rows - row : kQueries;
    Scale scales[kQueries];
    for (int64_t i = 0; i < rows; ++i) scales[i] = scale_of(a, row + i);
    parallel_ranges(slices, a.threads, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) search<W>(a, row, rows, scales, s, found + s * kQueries);
    });
    for (int64_t i = 0; i < rows; ++i) {
      TokenFound all = {kNothing, kNothing, -1};
      for (int64_t s = 0; s < slices; ++s) all = joined(all, found[s * kQueries + i]);
      finish<W>(a, row + i, scales[i], all);
    }
  }
}

// The products of a part of the table with all queries are there: take them up, and, behind the last part, decide.
template <class W>
void nearest_part(const NearestArgs& a) {
  parallel_ranges(a.rows, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Scale scale = scale_of(a, r);
      if (a.products == nullptr) {
        finish<W>(a, r, scale, a.found[r]);
        continue;
      }
      alignas(64) float scores[kTokens];
      for (int64_t j = 0; j < a.columns; j += kTokens) {
        const int64_t count = a.columns - j < kTokens ? a.columns - j : kTokens;
        take_block(a, scale, a.products + r * a.columns + j, a.weights + j, a.first + j, count, scores, a.found[r]);
      }
    }
  });
}

}  // namespace

void nearest_token(const NearestArgs& a) {
  with_words(a.dtype, [&](auto word) {
    using W = decltype(word);
    a.found == nullptr ? nearest_few<W>(a) : nearest_part<W>(a);
  });
}

}  // namespace TF_NS
