// Passes along directions with and without states, masks, shards and replays; samples, sums, counts and masks as bits; of any layout.
#include "native.hpp"
#include "zo/zo_api.hpp"
TF_TABLES(Zo, zo)
using namespace tenfold;

enum Way : int { kChain, kAdam, kMomentum, kSign, kPerturb, kUpdate, kReplay, kWays };

struct Tensor {
  std::vector<unsigned char> data;
  Layout layout;
  View view(int64_t first) {
    if (layout.plain) return {data.data(), layout.count, 0, nullptr, nullptr, first};
    return {data.data(), layout.count, 3, layout.sizes.data(), layout.strides.data(), first};
  }
};
using Tensors = std::vector<Tensor>;

static double coefficient(Bytes& in) {
  const float x = in.number();
  return std::isfinite(x) ? x : 0.5;
}

static uint32_t distribution(Bytes& in) {
  constexpr uint32_t kKnown[] = {0, 1, 7};
  return kKnown[in.byte() % 3];
}

static std::vector<Term> terms(Bytes& in, int64_t n) {
  std::vector<Term> out;
  for (int64_t i = 0; i < n; ++i) out.push_back({in.word(), coefficient(in), static_cast<uint32_t>(in.size(0, 9)), distribution(in)});
  return out;
}

// What the tensors of a call have in common, and its mask.
struct Call {
  int dtype, kind;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<int64_t> firsts;
  std::vector<uint32_t> streams;
  std::vector<double> limits;
  std::vector<std::vector<uint8_t>> bits;
  std::vector<const void*> addresses;
  MaskArgs mask;

  Call(Bytes& in, bool shards) : dtype(in.byte() % 4), kind(in.byte() % 4) {
    const int64_t count = in.size(1, 3);
    for (int64_t t = 0; t < count; ++t) {
      const bool large = in.byte() % 8 == 0, empty = in.byte() % 16 == 0;
      shapes.push_back({in.size(1, 3), in.size(1, large ? 5 : 3), empty ? 0 : in.size(1, large ? 900 : 40)});
      firsts.push_back(!shards || in.flag() ? 0 : in.flag() ? in.size(0, 5000) : static_cast<int64_t>(in.word() >> 2));
      streams.push_back(static_cast<uint32_t>(in.word()));
      const int64_t n = shapes[t][0] * shapes[t][1] * shapes[t][2];
      bits.push_back(in.integers<uint8_t>((n + 7) / 8, 0, 255));
      const float x = std::fabs(in.number());
      limits.push_back(kind == kRandomMask ? std::floor(in.byte() / 255.0 * 0x1p32) : std::isfinite(x) ? x : 0.5);
    }
    for (const auto& b : bits) addresses.push_back(b.data());
    mask = {kind, in.word(), static_cast<uint32_t>(in.size(0, 9)), limits.data(), addresses.data()};
  }
  Tensors tensors(Bytes& in, int of, bool positive = false) const {
    Tensors out;
    for (const auto& shape : shapes) {
      const Layout layout(in, shape);
      out.push_back({in.typed(layout.reach, of, positive), layout});
    }
    return out;
  }
  std::vector<View> views(Tensors& of) const {
    std::vector<View> out;
    for (size_t t = 0; t < of.size(); ++t) out.push_back(of[t].view(firsts[t]));
    return out;
  }
};

static void add(Found& found, const char* name, const Tensors& of, int dtype) {
  for (const Tensor& t : of) found.add(name, t.data, dtype);
}

static void passes(Bytes& in) {
  const int way = in.byte() % kReplay;
  const Call call(in, true);
  const bool wide = call.dtype == 1, half = !wide && (way == kAdam || way == kMomentum) && in.flag(), apart = in.flag();
  const int held = half ? 2 : wide ? 1 : 0;
  const Tensors params = call.tensors(in, call.dtype), sources = call.tensors(in, call.dtype);
  const Tensors first = call.tensors(in, held, way != kMomentum), second = call.tensors(in, held, true);
  const auto summands = terms(in, way == kPerturb ? 1 : in.byte() % 16 == 0 ? kMaxTerms : in.size(1, 3));
  const auto curvatures = std::vector<double>(summands.size(), 0.01 * in.byte());
  ChainArgs shared = {};
  shared.streams = call.streams.data(), shared.count = params.size(), shared.terms = summands.data();
  shared.n_terms = summands.size(), shared.decay = in.flag() || way == kPerturb ? 1.0 : coefficient(in), shared.dtype = call.dtype;
  shared.z_round = in.byte() % 2 == 0 ? kNoRounding : 2 + in.byte() % 2, shared.stochastic = in.flag();
  shared.rounding_seed = in.word(), shared.rounding_query = static_cast<uint32_t>(in.size(0, 9)), shared.threads = 1;
  shared.mask = call.mask;
  const bool nesterov = in.flag(), start = in.flag(), radazo = in.flag();
  const double restore = summands.size() == 1 && in.flag() ? 1e-3 : 0.0;
  on_each("zo", TF_EACH(zo), true, [&](const ZoKernels& k) {
    Tensors w = params, s = sources, m = first, v = second;
    const auto theta = call.views(w), from = apart ? call.views(s) : theta, mean = call.views(m), square = call.views(v);
    ChainArgs c = shared;
    c.params = theta.data(), c.sources = way == kChain || way == kPerturb ? from.data() : theta.data();
    if (way == kChain) k.chain(c);
    if (way == kAdam) k.adam({c, mean.data(), square.data(), 0.9, 0.999, 0.1, 0.001, 1.5, 1e-8, -1e-2, half, radazo});
    if (way == kMomentum) k.momentum({c, mean.data(), half, 0.9, nesterov ? 1.0 : 0.5, -1e-2, nesterov, start});
    if (way == kSign) k.sign({c, -1e-2});
    if (way == kPerturb) k.hizoo_perturb({c, mean.data()});
    if (way == kUpdate) k.hizoo_update({c, mean.data(), curvatures.data(), 0.1, 0.9, -1e-2, restore});
    Found found;
    add(found, "params", w, call.dtype), add(found, "first state", m, held), add(found, "second state", v, held);
    return found;
  });
}

// Passes one after another, by hand and in one call.
static void replays(Bytes& in) {
  const Call call(in, false);
  const Tensors params = call.tensors(in, call.dtype);
  const bool stochastic = in.flag();
  const int z_round = in.byte() % 2 == 0 ? kNoRounding : 2 + in.byte() % 2;
  std::vector<Term> summands;
  std::vector<ReplayPass> each;
  for (int64_t p = in.size(1, 4); p > 0; --p) {
    const auto own = terms(in, in.size(1, 2));
    summands.insert(summands.end(), own.begin(), own.end());
    each.push_back({static_cast<int64_t>(own.size()), in.flag() ? 1.0 : coefficient(in), in.word(), own[0].query, {}});
    if (call.kind == kRandomMask && in.flag()) each.back().mask = call.mask;
  }
  on_each("replay", TF_EACH(zo), true, [&](const ZoKernels& k) {
    Tensors w = params, by_hand = params;
    const auto theta = call.views(w), other = call.views(by_hand);
    const int64_t count = static_cast<int64_t>(w.size());
    k.replay({theta.data(), call.streams.data(), count, summands.data(), each.data(), static_cast<int64_t>(each.size()), call.dtype,
              z_round, stochastic, 1});
    const Term* at = summands.data();
    for (const ReplayPass& p : each) {
      k.chain({other.data(), other.data(), call.streams.data(), count, at, p.n_terms, p.decay, call.dtype, z_round, stochastic,
               p.rounding_seed, p.rounding_query, 1, p.mask});
      at += p.n_terms;
    }
    Found found, plain;
    add(found, "params", w, call.dtype), add(plain, "params", by_hand, call.dtype);
    found.require_same(plain, "replay, and passes one after another:");
    return found;
  });
}

static void samples(Bytes& in) {
  const int dtype = in.byte() % 4;
  const int64_t n = in.size(0, in.byte() % 4 == 0 ? 5000 : 300);
  const uint32_t stream = static_cast<uint32_t>(in.word()), query = static_cast<uint32_t>(in.word() >> 40), purpose = in.byte() % 12;
  const uint32_t dist = in.byte() % 4 == 0 ? 2 : distribution(in);
  const uint64_t seed = in.word(), first = in.flag() ? in.size(0, 5000) : in.word() >> 2;
  const auto x = in.numbers<float>(n);
  on_each("sample", TF_EACH(zo), true, [&](const ZoKernels& k) {
    std::vector<unsigned char> out(n * Bytes::width(dtype)), rounded(n * Bytes::width(dtype == 1 ? 0 : dtype));
    std::vector<int64_t> words(4 * (n / 4));
    k.sample({seed, stream, query, dist, first, n, dtype, out.data(), 1});
    k.words({seed, stream, query, purpose, first, n / 4, words.data(), 1});
    k.stochastic_round({x.data(), n, rounded.data(), dtype == 1 ? 0 : dtype, seed, stream, query, first, 1});
    const Moments sums = k.moments({seed, stream, query, dist, first, n, 0, nullptr, 1});
    for (int64_t w : words) require(w >= 0 && w < int64_t{1} << 32, "words", "has one of more than 32 bits");
    require(dist != 1 || sums.sum_of_squares == static_cast<double>(n), "moments", "has signs that are not 1 or -1");
    Found found;
    found.add("sample", out, dtype), found.add("words", words), found.add("rounded", rounded, dtype == 1 ? 0 : dtype);
    found.add("moments", std::vector<double>{sums.sum, sums.sum_of_squares});
    return found;
  });
}

static void statistics(Bytes& in) {
  const Call call(in, false);
  Tensors held = call.tensors(in, call.dtype);
  const auto tensors = call.views(held);
  const int64_t count = static_cast<int64_t>(tensors.size());
  const bool wide = call.dtype == 1 || in.flag(), looked_at = call.kind == kMagnitudeMask || in.flag();
  constexpr int kNarrowShifts[] = {20, 9, 0}, kWideShifts[] = {52, 41, 30, 19, 8, 0};
  const int shift = wide ? kWideShifts[in.byte() % 6] : kNarrowShifts[in.byte() % 3];
  const int left = (wide ? 63 : 31) - shift - kDigitBits;
  const uint64_t prefix = left > 0 && in.flag() ? in.word() >> (64 - left) : 0;
  const auto limits = in.numbers<float>(count, true);
  std::vector<double> thresholds;
  for (float x : limits) thresholds.push_back(std::isfinite(x) ? x : 1.0);
  const uint64_t seed = in.word();
  const uint32_t dist = distribution(in);
  on_each("statistics", TF_EACH(zo), true, [&](const ZoKernels& k) {
    std::vector<double> sums(count);
    std::vector<int64_t> digits(1 << kDigitBits), within(count);
    std::vector<std::vector<uint8_t>> bits;
    std::vector<void*> to;
    std::vector<View> sizes = tensors;
    for (View& t : sizes) t = looked_at ? t : View{nullptr, t.numel, 0, nullptr, nullptr};
    for (const View& t : tensors) bits.emplace_back((t.numel + 7) / 8);
    for (auto& b : bits) to.push_back(b.data());
    k.square_sums({sizes.data(), call.streams.data(), count, seed, 3, dist, call.mask, looked_at ? call.dtype : 0, sums.data(), 1});
    k.count_digits({tensors.data(), count, call.dtype, wide, shift, prefix, digits.data(), 1});
    k.count_within({tensors.data(), count, call.dtype, thresholds.data(), within.data(), nullptr, 1});
    k.magnitude_bits({tensors.data(), count, call.dtype, thresholds.data(), nullptr, to.data(), 1});
    int64_t total = 0, keys = 0;
    Found found;
    for (int64_t t = 0; t < count; ++t) {
      int64_t set = 0;
      for (uint8_t b : bits[t]) set += __builtin_popcount(b);
      require(set == within[t], "magnitude_bits", "sets other bits than were counted");
      require(sums[t] >= 0 && sums[t] <= 50.0 * tensors[t].numel, "square_sums", "is no sum of squares of normals");
      total += tensors[t].numel;
      found.add("bits", bits[t]);
    }
    for (int64_t n : digits) keys += n;
    require(keys <= total, "count_digits", "counted more keys than there are");
    found.add("sums", sums), found.add("digits", digits), found.add("within", within);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const int chosen = in.byte() % 8;
  in.tame = in.flag();
  if (chosen < 4) passes(in);
  if (chosen == 4) replays(in);
  if (chosen == 5 || chosen == 6) samples(in);
  if (chosen == 7) statistics(in);
  return 0;
}
