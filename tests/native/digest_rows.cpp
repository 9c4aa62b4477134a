// Prints a digest of what the kernels on rows compute: power allocation, projection on the simplex, tokens drawn and nearest tokens. Their
// lanes are the same number on every instruction set and nothing is fused: equal to the bit. Products with the word table are float32 in
// the order of the instruction set's lanes, and what they alone decide is shown to 4 places.
#include <cmath>
#include <cstdio>
#include <vector>
#include "attack/attack_api.hpp"
#include "digest.hpp"
#include "power/power_api.hpp"
namespace TF_NS {
extern const tenfold::PowerKernels power_kernels;
extern const tenfold::AttackKernels attack_kernels;
}  // namespace TF_NS
using namespace tenfold;

template <class T>
static std::vector<T> numbers(int64_t n, double scale, bool positive = false) {
  std::vector<T> out(static_cast<size_t>(n));
  for (T& x : out) x = static_cast<T>((positive ? std::fabs(next()) + 0x1p-20f : next()) * scale);
  return out;
}

template <class T>
static void powers(int64_t users) {
  const PowerKernels& k = TF_NS::power_kernels;
  const int64_t rows = 53, carriers = 37, each = users * carriers, dtype = sizeof(T) == 8;
  const auto g = numbers<T>(rows * each * 2, 1), s = numbers<T>(rows * carriers * 2, 1), p = numbers<T>(rows * users, 1, true);
  const auto noise = numbers<T>(rows, 0.3, true), wanted = numbers<T>(rows * users, 1, true);
  const PowerShape shape = {rows, users, carriers, static_cast<int>(dtype)}, flat = {rows, 1, carriers, static_cast<int>(dtype)};
  const PowerView gains = {g.data(), each, carriers, 1}, budget = {p.data(), users, 1, 0}, by_row = {noise.data(), 1, 0, 0};
  std::vector<T> out(rows * each * 2), alpha(rows), share(rows * users), objective(rows);
  std::vector<int32_t> steps(rows);
  const auto run = [&](auto kernel, auto args) {
    args.power = budget, args.noise = by_row, args.tolerance = 1e-6, args.most = 200, args.threads = 1;
    args.alpha = alpha.data(), args.objective = objective.data(), args.iterations = steps.data();
    kernel(args);
  };
  JointArgs joint = {};
  joint.shape = shape, joint.gains = gains, joint.symbols = {s.data(), carriers, 0, 1};
  joint.transmit = out.data(), joint.mu = share.data();
  run(k.joint, joint);
  std::printf("joint %ld %ld %016lx %016lx %016lx %016lx %016lx\n", (long)dtype, (long)users, digest(out), digest(alpha), digest(share),
              digest(objective), digest(steps));
  SeparableArgs separable = {};
  separable.shape = shape, separable.gains = gains, separable.wanted = {wanted.data(), users, 1, 0};
  separable.precoder = out.data(), separable.tau = share.data();
  run(k.separable, separable);
  std::printf("separable %016lx %016lx %016lx %016lx %016lx\n", digest(out), digest(alpha), digest(share), digest(objective),
              digest(steps));
  const auto x = numbers<T>(rows * carriers, 4, true), weights = numbers<T>(rows * carriers, 1, true);
  const PowerView row = {x.data(), carriers, 0, 1};
  std::vector<T> filled(rows * carriers), level(rows), scaled(rows * carriers * 2);
  for (bool inverse : {false, true}) {
    k.water({flat, row, by_row, inverse, filled.data(), level.data(), 1});
    std::printf("water %d %016lx %016lx\n", inverse, digest(filled), digest(level));
  }
  k.mse_water({flat, row, {weights.data(), carriers, 0, 1}, by_row, filled.data(), level.data(), 1});
  k.normalize({flat, {s.data(), carriers, 0, 1}, by_row, true, true, scaled.data(), 1});
  std::printf("mse water %016lx %016lx normalize %016lx\n", digest(filled), digest(level), digest(scaled));
}

template <class T>
static void simplex() {
  const int64_t rows = 5, columns = 4999;
  const int dtype = sizeof(T) == 8;
  auto p = numbers<T>(rows * columns, 0.01), out = p;
  const auto u = numbers<double>(rows, 1, true);
  std::vector<int64_t> picks(rows);
  for (double radius : {1.0, 0.003}) {
    TF_NS::attack_kernels.simplex({p.data(), out.data(), rows, columns, dtype, radius, 1});
    std::printf("simplex %d %g %016lx\n", dtype, radius, digest(out));
  }
  TF_NS::attack_kernels.simplex({p.data(), out.data(), rows, columns, dtype, 1.0, 1});
  TF_NS::attack_kernels.sample({out.data(), u.data(), picks.data(), rows, columns, dtype, 1});
  std::printf("sample %d %016lx\n", dtype, digest(picks));
}

static void tokens() {
  const int64_t rows = 7, columns = 997, width = 83;
  const auto q = floats(rows * width), gradient = floats(rows * width, 1e-3f), whole = floats(rows * columns, 1e-3f);
  std::vector<uint8_t> mask(columns, 1), banned(columns, 0);
  for (int64_t i = 0; i < columns; i += 13) mask[i] = 0, banned[i] = 1;
  for (int dtype : {0, 2, 3}) {
    const auto table = drawn(columns * width, dtype, 0.05f);
    for (bool cosine : {false, true}) {
      std::vector<int64_t> ids(rows);
      std::vector<float> scores(rows);
      NearestArgs a = {};
      a.q = q.data(), a.table = table.data(), a.mask = mask.data(), a.rows = rows, a.columns = columns, a.width = width;
      a.dtype = dtype, a.cosine = cosine, a.ids = ids.data(), a.scores = scores.data(), a.threads = 1;
      TF_NS::attack_kernels.nearest(a);
      std::printf("nearest %d %d %016lx %.4f %.4f %.4f\n", dtype, cosine, digest(ids), scores[0], scores[3], scores[6]);
    }
    for (bool ready : {false, true}) {
      auto p = floats(rows * columns, 0.01f);
      std::vector<float> m(rows * columns), v(rows * columns);
      const double first[3] = {0.1, 0.19, 0.271}, second[3] = {0.0316, 0.0447, 0.0547};
      for (int step = 0; step < 3; ++step)
        TF_NS::attack_kernels.ste_adam({p.data(), m.data(), v.data(), ready ? whole.data() : gradient.data(), table.data(), banned.data(),
                                        rows, columns, width, dtype, ready, 0.01, 0.9, 0.999, 1e-8, 0.1, first[step], second[step], 1});
      if (ready)
        std::printf("adam on the simplex %d %016lx %016lx %016lx\n", dtype, digest(p), digest(m), digest(v));
      else
        std::printf("adam on the simplex %d %.4f %.4f %.4f\n", dtype, p[4], p[columns + 55], m[2 * columns + 7] * 100);
    }
  }
}

int main() {
  for (int64_t users : {1, 2, 3}) powers<float>(users), powers<double>(users);
  simplex<float>();
  simplex<double>();
  tokens();
}
