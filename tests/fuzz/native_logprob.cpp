// Log-probabilities from hidden states, and rows of logits: sums, gradients, draws, divergences. Labels drawn and likeliest entries are
// equal; sums of ordinary values are within the rounding of sums of a few hundred floats.
#include "logprob/logprob_api.hpp"
#include "logprob/rows_api.hpp"
#include "native.hpp"
TF_TABLES(Logprob, logprob)
TF_TABLES(Row, row)
using namespace tenfold;

constexpr int kTypes[] = {0, 2, 3};
constexpr double kNear = 1e-4;

static void from_hidden(Bytes& in) {
  const int dtype = kTypes[in.byte() % 3];
  const int64_t n = in.size(1, in.byte() % 8 == 0 ? 280 : 40), width = in.size(1, in.byte() % 8 == 0 ? 300 : 20);
  const int64_t vocabulary = in.size(1, n * width > 2000 ? 30 : 150), segments = in.flag() ? 64 : in.size(1, 5);
  const Layout layout(in, {vocabulary, width}, true, true);
  const auto weight = in.typed(layout.reach, dtype);
  const auto rows = in.numbers<float>(n * width), bias = in.numbers<float>(vocabulary);
  const auto targets = in.integers<int64_t>(n, 0, vocabulary - 1);
  const bool biased = in.flag();
  on_each("logprob", TF_EACH(logprob), true, [&](const LogprobKernels& k) {
    std::vector<float> max(segments * n), sum(segments * n), at_target(n, NAN);
    k.token_logprobs({rows.data(), targets.data(), weight.data(), biased ? bias.data() : nullptr, n, width, vocabulary, layout.strides[0],
                      dtype, segments, max.data(), sum.data(), at_target.data(), 1});
    std::vector<double> lse(n);
    for (int64_t r = 0; r < n; ++r) {
      double top = -INFINITY, total = 0;
      bool nan = false;
      for (int64_t h = 0; h < width; ++h) nan = nan || rows[r * width + h] != rows[r * width + h];
      for (int64_t s = 0; s < segments; ++s) top = std::fmax(top, max[s * n + r]);
      for (int64_t s = 0; s < segments; ++s) total += sum[s * n + r] * std::exp(max[s * n + r] - top);
      lse[r] = top + std::log(total);
      require(!nan || lse[r] != lse[r], "logprob", "lost a NaN");
      require(!in.tame || at_target[r] <= lse[r] + 1e-4 * (1 + std::fabs(lse[r])) + 1e-5 * width, "logprob", "is above 0");
    }
    Found found;
    // Products of at most 8 * 8, width of them, each rounded.
    if (in.tame) found.near("lse", lse, 1e-6 * 64 * (width + 16)), found.near("target", at_target, 1e-6 * 64 * (width + 16));
    return found;
  });
}

// Rows of some batches, of any layout but that entries of a row lie together.
struct Logits {
  Layout layout;
  std::vector<unsigned char> data;
  Rows rows(std::vector<unsigned char>& of) const {
    return {of.data(), layout.sizes[0] * layout.sizes[1], layout.sizes[1], layout.strides[0], layout.strides[1]};
  }
  Rows rows() const { return rows(const_cast<std::vector<unsigned char>&>(data)); }
};

static Logits logits(Bytes& in, int64_t batch, int64_t inner, int64_t vocabulary, int dtype, bool repeat) {
  const Layout layout(in, {batch, inner, vocabulary}, repeat, true);
  return {layout, in.typed(layout.reach, dtype)};
}

static std::vector<float> floats(const std::vector<unsigned char>& from) {
  std::vector<float> out(from.size() / 4);
  if (!out.empty()) std::memcpy(out.data(), from.data(), from.size());
  return out;
}

static void rows(Bytes& in) {
  const int dtype = kTypes[in.byte() % 3], way = in.byte() % 4;
  const int64_t batch = in.size(in.byte() % 16 == 0 ? 0 : 1, 3), inner = in.size(1, 3), n = batch * inner;
  const int64_t vocabulary = in.size(1, in.byte() % 4 == 0 ? 4300 : 90);
  const bool stats = in.flag(), over = in.flag(), capped = way < 2 && in.byte() % 4 == 0;
  const Logits z = logits(in, batch, inner, vocabulary, dtype, !over), apart = logits(in, batch, inner, vocabulary, dtype, false);
  const RowShape shape = {vocabulary, dtype, capped ? 0.5f * in.size(1, 60) : 0.0f, in.flag() || way == 3 ? 1.0f : 0.25f * in.size(1, 16)};
  auto targets = in.integers<int64_t>(n, -1, vocabulary < 200 ? vocabulary - 1 : 199);
  auto uniforms = in.numbers<double>(n, true);
  for (double& u : uniforms) u = in.byte() % 8 == 0 ? -1.0 : std::isfinite(u) ? u - std::floor(u) : 0.5;
  const auto coef = in.numbers<double>(n), at_target = in.numbers<double>(n), given = in.numbers<double>(n);
  on_each("rows", TF_EACH(row), true, [&](const RowKernels& k) {
    std::vector<double> logp(n), lse(n), means[3];
    std::vector<int64_t> argmax(stats ? n : 0, -7), tokens(n, -7);
    for (auto& m : means) m.resize(stats ? n : 0);
    Found found;
    if (way < 2) {
      k.forward({z.rows(), shape, targets.data(), logp.data(), lse.data(), stats ? argmax.data() : nullptr, means[0].data(),
                 means[1].data(), means[2].data(), 1});
      for (int64_t at : argmax) require(at >= 0 && at < vocabulary, "forward", "has a likeliest entry that there is not");
      if (!capped) found.add("argmax", argmax);
      if (in.tame) found.near("mean of logits", means[0], kNear), found.near("mean of logarithms", means[1], kNear);
    }
    if (way == 1) {
      auto out = over ? z.data : apart.data, to = out;
      const Logits& place = over ? z : apart;
      const auto& total = in.tame ? lse : given;
      k.softmax({place.rows(to), over ? place.rows(to) : z.rows(), shape, targets.data(), total.data(), coef.data(), at_target.data(), 1});
      if (in.tame && dtype == 0) found.near("softmax", floats(to), kNear);
    }
    if (way == 2) {
      k.sample({z.rows(), shape, uniforms.data(), tokens.data(), logp.data(), lse.data(), 1});
      for (int64_t r = 0; r < n; ++r) {
        require(tokens[r] >= -1 && tokens[r] < vocabulary, "sample", "drew a label that there is not");
        require(!in.tame || (tokens[r] < 0) == (uniforms[r] < 0), "sample", "drew for a row that is left out, or not for one that is in");
      }
      found.add("tokens", tokens), found.add("logp", logp), found.add("lse", lse);
    }
    if (way == 3) {
      std::vector<double> loss(n);
      k.ceu({z.rows(), shape, targets.data(), loss.data(), lse.data(), logp.data(), 1});
      if (in.tame) found.near("loss", loss, kNear);
    }
    if (in.tame && way != 2) found.near("logp", logp, kNear), found.near("lse", lse, kNear);
    return found;
  });
}

static void divergences(Bytes& in) {
  const int64_t batch = in.size(in.byte() % 16 == 0 ? 0 : 1, 3), inner = in.size(1, 3), n = batch * inner;
  const int64_t vocabulary = in.size(1, in.byte() % 4 == 0 ? 4300 : 90);
  const int kind = in.byte() % 3;
  const float beta = kind == kCrossEntropy ? 0.5f * in.byte() : 0.0f;
  const Logits z = logits(in, batch, inner, vocabulary, 0, true), ref = logits(in, batch, inner, vocabulary, 0, true);
  const Logits to = logits(in, batch, inner, vocabulary, 0, false);
  const auto targets = in.integers<int64_t>(n, -1, vocabulary < 200 ? vocabulary - 1 : 199);
  const auto grad = in.numbers<double>(n);
  on_each("divergence", TF_EACH(row), true, [&](const RowKernels& k) {
    std::vector<double> loss(n), lse(n), ref_lse(n);
    auto out = to.data;
    RowDivergenceArgs a = {to.rows(out), z.rows(),    ref.rows(), vocabulary,     targets.data(), beta,
                           kind,         loss.data(), lse.data(), ref_lse.data(), grad.data(),    1};
    k.divergence(a);
    k.divergence_backward(a);
    Found found;
    if (!in.tame) return found;
    for (double l : loss) require(kind == kCrossEntropy || l >= -1e-4, "divergence", "is negative");
    found.near("loss", loss, kNear), found.near("lse", lse, kNear), found.near("lse of the reference", ref_lse, kNear);
    found.near("gradient", floats(out), 1e-3);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  void (*const targets[])(Bytes&) = {from_hidden, rows, rows, divergences};
  const int chosen = in.byte() % 4;
  in.tame = in.flag();
  targets[chosen](in);
  return 0;
}
