// Power allocation on drawn sizes, strides and values.
#include "native.hpp"
#include "power/power_api.hpp"
TF_TABLES(Power, power)
using namespace tenfold;

template <class T>
static void powers(Bytes& in) {
  const int dtype = sizeof(T) == 8, way = in.byte() % 5;
  const int64_t rows = in.size(0, 19), users = in.size(1, 9), carriers = in.size(1, 21), each = users * carriers;
  const PowerShape shape = {rows, users, carriers, dtype}, flat = {rows, 1, carriers, dtype};
  in.tame = in.flag();
  const bool shared = in.flag();  // one value for all rows
  const auto g = in.numbers<T>(rows * each * 2), s = in.numbers<T>(rows * carriers * 2), p = in.numbers<T>(rows * users, true);
  const auto noise = in.numbers<T>(shared ? 1 : rows, true), wanted = in.numbers<T>(rows * users, true);
  const auto weights = in.numbers<T>(rows * each, true), wide = in.numbers<T>(rows * carriers, true);
  const PowerView gains = {g.data(), each, carriers, 1}, budget = {p.data(), users, 1, 0};
  const PowerView by_row = {noise.data(), shared ? 0 : 1, 0, 0};
  const PowerView target = {wanted.data(), users, 1, 0}, weighted = {in.flag() ? weights.data() : nullptr, each, carriers, 1};
  const PowerView row = {weights.data(), carriers, 0, 1}, first = {s.data(), carriers, 0, 1};
  const int64_t most = in.size(1, 60);
  on_each("power", TF_EACH(power), true, [&](const PowerKernels& k) {
    std::vector<T> out(rows * each * 2), alpha(rows), dual(rows * users), objective(rows), level(rows);
    std::vector<int32_t> steps(rows);
    if (way == 0)
      k.joint({shape,
               gains,
               {s.data(), carriers, 0, 1},
               budget,
               by_row,
               {},
               1e-6,
               most,
               out.data(),
               alpha.data(),
               dual.data(),
               objective.data(),
               steps.data(),
               1});
    if (way == 1)
      k.separable({shape, gains, budget, by_row, target, weighted, 1e-6, most, out.data(), alpha.data(), dual.data(), objective.data(),
                   steps.data(), 1});
    if (way == 2) k.water({flat, row, by_row, most % 2 == 0, out.data(), level.data(), 1});
    if (way == 3) k.mse_water({flat, row, {wide.data(), carriers, 0, 1}, by_row, out.data(), level.data(), 1});
    if (way == 4) k.normalize({flat, most % 2 == 0 ? first : row, by_row, most % 2 == 0, most % 3 == 0, out.data(), 1});
    for (int32_t taken : steps) require(taken >= 0 && taken <= 2 * most, "power", "took more steps than two searches may");
    Found found;
    found.add("out", out), found.add("alpha", alpha), found.add("dual", dual), found.add("objective", objective);
    found.add("level", level), found.add("steps", steps);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  in.flag() ? powers<double>(in) : powers<float>(in);
  return 0;
}
