// Scores, cross-entropies, votes, masks and dynamics of rows of logits, medians of classes, pursuit. Counts, choices, medians and which
// rows are bad are equal; scores of ordinary logits are within the rounding of sums of a few hundred floats.
#include <algorithm>

#include "native.hpp"
#include "scores/scores_api.hpp"
TF_TABLES(Score, score)
TF_TABLES(Median, median)
TF_TABLES(Fgrad, fgrad)
using namespace tenfold;

constexpr int kTypes[] = {0, 2, 3};
constexpr double kNear = 1e-4;

struct Rows {
  std::vector<unsigned char> data;
  Matrix matrix;
};

static Rows rows(Bytes& in, int64_t count, int64_t columns) {
  const int dtype = kTypes[in.byte() % 3];
  const Layout layout(in, {count, columns}, true, true);
  Rows out = {in.typed(layout.reach, dtype), {nullptr, count, columns, layout.strides[0], dtype}};
  out.matrix.data = out.data.data();
  return out;
}

static int64_t width(Bytes& in) { return in.size(1, in.byte() % 8 == 0 ? 4300 : 90); }

static void scored(Bytes& in) {
  const int64_t n = in.size(1, 6), columns = width(in);
  const Rows logits = rows(in, n, columns);
  const bool valid = in.flag(), wanted = in.flag();  // Python finds wrong labels in what the kernel reports
  const auto labels = in.integers<int64_t>(n, valid ? 0 : -2, valid ? (columns < 200 ? columns : 200) - 1 : columns + 2);
  const auto norms = in.numbers<float>(n, true);
  std::vector<bool> want(9);
  for (size_t i = 0; i < 9; ++i) want[i] = in.byte() % 4 != 0 || wanted;
  on_each("score", TF_EACH(score), true, [&](const ScoreKernels& k) {
    std::vector<float> out[7];
    float* to[7];
    for (int i = 0; i < 7; ++i) out[i].resize(want[i] ? n : 0), to[i] = want[i] ? out[i].data() : nullptr;
    std::vector<uint8_t> correct(want[7] ? n : 0);
    std::vector<int64_t> histogram(want[8] ? columns : 0), bad = {n, n};
    k.score({logits.matrix, labels.data(), want[1] ? norms.data() : nullptr, to[0], to[1], to[2], to[3], to[4], to[5], to[6],
             want[7] ? correct.data() : nullptr, want[8] ? histogram.data() : nullptr, bad.data(), 1});
    int64_t votes = 0;
    for (int64_t v : histogram) votes += v;
    require(votes <= n && (!in.tame || !want[8] || votes == n), "score", "has another number of votes than rows");
    require(!in.tame || bad[0] == n, "score", "calls ordinary logits infinite");
    require(!valid || bad[1] == n, "score", "calls a label of a class wrong");
    for (int64_t r = 0; logits.matrix.dtype == 0 && r < n; ++r) {
      const float* z = reinterpret_cast<const float*>(logits.data.data()) + r * logits.matrix.stride;
      float top = -INFINITY;
      for (int64_t i = 0; i < columns; ++i) top = z[i] > top || z[i] != z[i] ? (z[i] != z[i] ? INFINITY : z[i]) : top;
      for (int i = 0; std::isinf(top) && i < 7; ++i)
        require(!want[i] || out[i][r] != out[i][r], "score", "of a row with NaN or infinity, or nothing, is a number");
    }
    Found found;
    found.add("bad", bad), found.add("histogram", histogram), found.add("correct", correct);
    for (int i = 0; in.tame && i < 7; ++i) found.near("score", out[i], kNear);
    return found;
  });
}

static void entropies(Bytes& in) {
  const int64_t n = in.size(1, 6), columns = width(in);
  const Rows logits = rows(in, n, columns);
  const auto labels = in.integers<int64_t>(n, 0, (columns < 200 ? columns : 200) - 1);
  const auto grad = in.numbers<float>(n);
  const int dtype = logits.matrix.dtype;
  on_each("cross_entropy", TF_EACH(score), true, [&](const ScoreKernels& k) {
    std::vector<float> loss(n), top(n), log_total(n);
    std::vector<unsigned char> out(n * columns * Bytes::width(dtype), 1);
    CrossEntropyArgs a = {logits.matrix, labels.data(), loss.data(), top.data(), log_total.data(), nullptr, nullptr, 0, 1};
    k.cross_entropy(a);
    a.grad = grad.data(), a.out = out.data(), a.out_stride = columns;
    k.cross_entropy_backward(a);
    Found found;
    if (!in.tame) return found;
    found.add("top", top), found.near("loss", loss, kNear), found.near("log_total", log_total, kNear);
    if (dtype != 0) return found;
    const float* values = reinterpret_cast<const float*>(out.data());
    found.near("gradient", std::vector<float>(values, values + n * columns), kNear);
    return found;
  });
}

static void dynamics(Bytes& in) {
  const int64_t samples = in.size(1, 30), n = in.size(0, samples);
  std::vector<int64_t> order(samples);
  for (int64_t i = 0; i < samples; ++i) order[i] = i;
  for (int64_t i = 0; i < n; ++i) std::swap(order[i], order[i + in.byte() % (samples - i)]);
  order.resize(n);
  const auto correct = in.integers<uint8_t>(n, 0, 1), last = in.integers<uint8_t>(samples, 0, 1),
             ever = in.integers<uint8_t>(samples, 0, 1);
  const auto margin = in.numbers<float>(n), el2n = in.numbers<float>(n), aum = in.numbers<float>(samples), sum = in.numbers<float>(samples);
  const auto counts = in.integers<int32_t>(samples, 0, 90);
  on_each("dynamics", TF_EACH(score), true, [&](const ScoreKernels& k) {
    auto last1 = last, ever1 = ever;
    auto forget = counts, hits = counts, seen = counts;
    auto aum1 = aum, sum1 = sum;
    k.dynamics({n, order.data(), correct.data(), margin.data(), el2n.data(), last1.data(), forget.data(), hits.data(), aum1.data(),
                sum1.data(), ever1.data(), seen.data()});
    Found found;
    found.add("last", last1), found.add("ever", ever1), found.add("forget", forget), found.add("correct", hits), found.add("seen", seen);
    found.add("aum", aum1), found.add("el2n", sum1);
    return found;
  });
}

static void votes(Bytes& in) {
  const int64_t n = in.size(1, 9), columns = width(in), classes = in.size(1, 5);
  const Rows logits = rows(in, n, columns);
  const auto targets = in.integers<int64_t>(n, 0, classes - 1);
  const bool crossed = in.flag();
  on_each("vote", TF_EACH(score), true, [&](const ScoreKernels& k) {
    std::vector<int64_t> histogram(columns), matrix(crossed ? classes * columns : 0), bad = {n};
    k.vote({logits.matrix, crossed ? targets.data() : nullptr, histogram.data(), crossed ? matrix.data() : nullptr, bad.data(), 1});
    int64_t one = 0, two = 0;
    for (int64_t v : histogram) one += v;
    for (int64_t v : matrix) two += v;
    require(one <= n && (bad[0] < n) == (one < n), "vote", "has another number of votes than rows");
    require(!crossed || one == two, "vote", "counts other votes in the matrix");
    Found found;
    found.add("histogram", histogram), found.add("matrix", matrix), found.add("bad", bad);
    return found;
  });
}

static void masks(Bytes& in) {
  constexpr int kWidths[] = {1, 1, 2, 4, 8};
  const int kind = in.byte() % 5;
  const int64_t bytes = kWidths[kind], n = in.size(1, 300) + (in.byte() % 16 == 0 ? kMaskPiece : 0), classes = in.size(1, 60);
  const bool wrong = in.byte() % 4 == 0;
  const auto values = in.integers<int64_t>(n, wrong && kind != 0 ? -1 : 0, wrong ? classes : classes - 1);
  const auto keep = in.integers<uint8_t>(classes, 0, 1);
  std::vector<unsigned char> labels(n * bytes);
  for (int64_t i = 0; i < n; ++i) std::memcpy(&labels[i * bytes], &values[i], bytes);
  int64_t first_bad = n;
  std::vector<int64_t> kept;
  for (int64_t i = n; i-- > 0;)
    if (values[i] < 0 || values[i] >= classes) first_bad = i;
  for (int64_t i = 0; first_bad == n && i < n; ++i)
    if (keep[values[i]]) kept.push_back(i);
  on_each("mask", TF_EACH(score), true, [&](const ScoreKernels& k) {
    std::vector<int64_t> counts((n + kMaskPiece - 1) / kMaskPiece), bad = {n}, out(kept.size());
    MaskArgsOfClasses a = {labels.data(), static_cast<int>(bytes), kind != 0,  n,       keep.data(),
                           classes,       counts.data(),           bad.data(), nullptr, 1};
    k.mask(a);
    require(bad[0] == first_bad, "mask", "found another wrong label");
    if (bad[0] == n && !kept.empty()) a.out = out.data(), k.mask(a);
    require(out == kept, "mask", "kept other samples");
    return Found();
  });
}

static void medians(Bytes& in) {
  const int64_t n = in.size(0, 60), columns = in.size(1, 70), classes = in.size(1, 4);
  const Rows x = rows(in, n, columns);
  const auto labels = in.integers<int64_t>(n, 0, classes - 1);
  const auto value = [&](int64_t r, int64_t c) {  // a float32 entry
    return reinterpret_cast<const float*>(x.data.data())[r * x.matrix.stride + c];
  };
  on_each("medians", TF_EACH(median), true, [&](const MedianKernels& k) {
    std::vector<float> middle(classes * columns), distances(n);
    std::vector<uint8_t> bad(1);
    k.medians({x.matrix, labels.data(), classes, middle.data(), nullptr, bad.data(), 1});
    if (n > 0) k.distances({x.matrix, labels.data(), classes, middle.data(), distances.data(), nullptr, 1});
    Found found;
    found.add("bad", bad);
    require(!in.tame || bad[0] == 0, "medians", "calls ordinary entries infinite");
    if (bad[0] != 0) return found;
    found.add("medians", middle);
    if (in.tame) found.near("distances", distances, kNear);
    for (int64_t c = 0; x.matrix.dtype == 0 && c < classes; ++c)
      for (int64_t j = 0; j < columns; ++j) {
        std::vector<float> own;
        for (int64_t r = 0; r < n; ++r)
          if (labels[r] == c) own.push_back(value(r, j) + 0.0f);
        const float got = middle[c * columns + j];
        std::sort(own.begin(), own.end());
        const size_t size = own.size();
        const bool right = size == 0 ? got != got : got == (own[(size - 1) / 2] + own[size / 2]) / 2;
        require(right, "medians", "is not the middle of what was sorted");
      }
    return found;
  });
}

static void pursuit(Bytes& in) {
  const int64_t n = in.size(1, in.byte() % 8 == 0 ? 300 : 40), k = in.size(1, n < 12 ? n : 12);
  const Rows errors = rows(in, n, in.size(0, 20)), hidden = rows(in, n, in.size(0, 40));
  const bool bias = in.flag();
  const auto q = in.numbers<double>(n);
  const double lam = in.flag() ? 0.0 : 0.125 * in.byte(), square = 0.5 * in.byte();
  on_each("pursuit", TF_EACH(fgrad), false, [&](const FgradKernels& kernels) {
    std::vector<double> columns(k * n), c(n), gram(k * k), chol(k * k), residuals(k);
    std::vector<int64_t> indices(k);
    kernels.omp({errors.matrix, hidden.matrix, bias, k, lam, square, q.data(), columns.data(), c.data(), indices.data(), gram.data(),
                 chol.data(), residuals.data(), 1});
    std::vector<bool> taken(n);
    for (int64_t i : indices) {
      require(i >= 0 && i < n, "pursuit", "picked what there is not");
      require(!taken[i], "pursuit", "picked one twice");
      taken[i] = true;
    }
    for (double r : residuals) require(!(r < 0), "pursuit", "has a negative residual");
    return Found();
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  void (*const targets[])(Bytes&) = {scored, entropies, dynamics, votes, masks, medians, pursuit, scored};
  const int chosen = in.byte() % 8;
  in.tame = in.flag();
  targets[chosen](in);
  return 0;
}
