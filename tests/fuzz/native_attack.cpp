// Projections on the simplex, draws, nearest tokens, latents and means of differences. Products with the word table are float32 in the
// order of the instruction set's lanes; what they decide is not compared.
#include "attack/attack_api.hpp"
#include "native.hpp"
TF_TABLES(Attack, attack)
using namespace tenfold;

static void simplex(Bytes& in) {
  const int dtype = in.flag();
  const int64_t rows = in.size(0, 9), columns = in.size(1, 90);
  const auto p = in.typed(rows * columns, dtype);
  const double radius = 0.25 * in.size(1, 9);
  on_each("simplex", TF_EACH(attack), true, [&](const AttackKernels& k) {
    auto out = p;
    k.simplex({p.data(), out.data(), rows, columns, dtype, radius, 1});
    Found found;
    found.add("out", out, dtype);
    return found;
  });
}

static void draws(Bytes& in) {
  const int dtype = in.flag();
  const int64_t rows = in.size(0, 9), columns = in.size(1, 70);
  const auto p = in.typed(rows * columns, dtype, true);
  auto u = in.numbers<double>(rows, true);
  for (double& x : u) x = std::isfinite(x) ? x - std::floor(x) : 0.5;
  on_each("sample", TF_EACH(attack), true, [&](const AttackKernels& k) {
    std::vector<int64_t> out(rows, -1);
    k.sample({p.data(), u.data(), out.data(), rows, columns, dtype, 1});
    for (int64_t at : out) require(at >= -1 && at < columns, "sample", "drew a token that there is not");
    Found found;
    found.add("out", out);
    return found;
  });
}

static void nearest(Bytes& in) {
  const int dtype = in.byte() % 4 == 1 ? 0 : in.byte() % 4;
  const int64_t rows = in.size(0, 6), columns = in.size(1, 80), width = in.size(1, 40);
  const auto q = in.numbers<float>(rows * width), inverse = in.numbers<float>(columns, true);
  const auto table = in.typed(columns * width, dtype == 1 ? 0 : dtype);
  auto mask = in.integers<uint8_t>(columns, 0, 1);
  mask[in.byte() % columns] = 1;
  const bool masked = in.flag(), cosine = in.flag(), normed = in.flag();
  on_each("nearest", TF_EACH(attack), false, [&](const AttackKernels& k) {
    std::vector<int64_t> ids(rows, -1);
    std::vector<float> scores(rows);
    NearestArgs a = {};
    a.q = q.data(), a.table = table.data(), a.inv_norm = normed ? inverse.data() : nullptr, a.mask = masked ? mask.data() : nullptr;
    a.rows = rows, a.columns = columns, a.width = width, a.dtype = dtype == 1 ? 0 : dtype, a.cosine = cosine;
    a.ids = ids.data(), a.scores = scores.data(), a.threads = 1;
    k.nearest(a);
    for (int64_t id : ids) require(id >= (in.tame ? 0 : -1) && id < columns, "nearest", "found a token that there is not");
    return Found();
  });
}

static void step(Bytes& in) {
  const int64_t rows = in.size(0, 5), columns = in.size(1, 40), width = in.size(1, 24);
  const bool ready = in.flag(), banned = in.flag();
  const auto p = in.numbers<float>(rows * columns, true), m = in.numbers<float>(rows * columns),
             v = in.numbers<float>(rows * columns, true);
  const auto gradient = in.numbers<float>(rows * (ready ? columns : width));
  const auto table = in.numbers<float>(columns * width);
  auto ban = in.integers<uint8_t>(columns, 0, 1);
  ban[0] = 0;
  on_each("ste_adam", TF_EACH(attack), ready, [&](const AttackKernels& k) {
    auto p1 = p, m1 = m, v1 = v;
    k.ste_adam({p1.data(), m1.data(), v1.data(), gradient.data(), table.data(), banned ? ban.data() : nullptr, rows, columns, width, 0,
                ready, 0.1, 0.9, 0.999, 1e-8, 0.01, 0.1, 0.03, 1});
    Found found;
    found.add("p", p1), found.add("m", m1), found.add("v", v1);
    return found;
  });
}

static void differences(Bytes& in) {
  const int dtype = in.byte() % 4;
  const int64_t batch = in.size(0, 4), size = in.size(1, 90), pieces = (size + kMsePiece - 1) / kMsePiece;
  const auto a = in.typed(batch * size, dtype), b = in.typed(batch * size, dtype), c = in.typed(batch * size, dtype);
  const auto grad = in.numbers<double>(batch);
  const bool two = in.flag(), squares = in.flag();
  on_each("mse", TF_EACH(attack), false, [&](const AttackKernels& k) {
    std::vector<double> sums(batch * pieces);
    auto out = a;
    GuidedMseArgs g = {a.data(), b.data(), two ? c.data() : nullptr, batch, size, dtype, 1.5, squares, sums.data(), nullptr, nullptr, 1};
    k.mse(g);
    g.grad = grad.data(), g.out = out.data();
    k.mse_backward(g);
    return Found();
  });
}

static void splice(Bytes& in) {
  const int dtype = in.byte() % 4;
  const int64_t batch = in.size(0, 3), columns = in.size(1, 12), extra = in.size(1, 5), width = in.size(1, 20);
  const auto embeds = in.typed(batch * columns * width, dtype), adv = in.typed(batch * extra * width, dtype);
  auto index = in.integers<int64_t>(batch * columns, 0, columns + extra - 1);
  on_each("splice", TF_EACH(attack), true, [&](const AttackKernels& k) {
    auto out = embeds, grad_embeds = embeds, grad_adv = adv;
    SpliceArgs s = {embeds.data(), adv.data(), index.data(), out.data(), batch, columns, extra, width, dtype, nullptr, nullptr, nullptr, 1};
    k.splice(s);
    s.grad = embeds.data(), s.grad_embeds = grad_embeds.data(), s.grad_adv = grad_adv.data();
    k.splice_backward(s);
    Found found;
    found.add("out", out, dtype), found.add("grad", grad_embeds, dtype), found.add("grad of adv", grad_adv, dtype);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  void (*const targets[])(Bytes&) = {simplex, draws, nearest, step, differences, splice};
  const int chosen = in.byte() % 6;
  in.tame = in.flag();
  targets[chosen](in);
  return 0;
}
