// Rows of perturbed weights of any layout, by blocks and looked up: equal to the bit, also to each other.
#include "dual/dual_api.hpp"
#include "native.hpp"
TF_TABLES(Dual, dual)
using namespace tenfold;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  in.tame = in.flag();
  const int dtype = in.byte() % 4, out_dtype = dtype >= 2 && in.flag() ? 0 : dtype;
  const bool large = in.byte() % 8 == 0;
  const int64_t height = in.size(1, 12), columns = in.size(in.byte() % 16 == 0 ? 0 : 1, large ? 2500 : 150);
  const int64_t row = in.size(0, height), rows = in.size(0, height - row), tokens = in.size(1, 7), copies = in.size(1, 4);
  const Layout layout(in, {height, columns}, true);
  const auto held = in.typed(layout.reach, dtype);
  constexpr uint32_t kDistributions[] = {0, 1, 7};
  const PerturbedWeight weight = {held.data(),
                                  columns,
                                  layout.strides[0],
                                  layout.strides[1],
                                  dtype,
                                  in.word(),
                                  static_cast<uint32_t>(in.word()),
                                  static_cast<uint32_t>(in.size(0, 9)),
                                  kDistributions[in.byte() % 3],
                                  in.flag() ? -1 : 2 + in.byte() % 2};
  std::vector<double> coefs;
  std::vector<std::vector<int64_t>> ids;
  for (int64_t p = 0; p < copies; ++p) {
    const float x = in.number();
    coefs.push_back(std::isfinite(x) && x != 0 ? x : 1e-3);
    ids.push_back(in.integers<int64_t>(tokens, 0, height - 1));
  }
  std::vector<int64_t> of_block;
  for (int64_t r = row; r < row + rows; ++r) of_block.push_back(r);
  on_each("dual", TF_EACH(dual), true, [&](const DualKernels& k) {
    std::vector<std::vector<unsigned char>> filled(copies), looked_up(copies), again(copies);
    std::vector<PerturbedOut> fill, embed, block;
    for (int64_t p = 0; p < copies; ++p) {
      filled[p].resize(rows * columns * Bytes::width(out_dtype));
      looked_up[p].resize(tokens * columns * Bytes::width(dtype));
      again[p].resize(rows * columns * Bytes::width(dtype));
      fill.push_back({filled[p].data(), coefs[p], nullptr});
      embed.push_back({looked_up[p].data(), coefs[p], ids[p].data()});
      block.push_back({again[p].data(), coefs[p], of_block.data()});
    }
    k.fill({weight, row, rows, fill.data(), copies, out_dtype, 1});
    k.embed({weight, tokens, embed.data(), copies, 1});
    k.embed({weight, rows, block.data(), copies, 1});
    Found found, one, other;
    for (int64_t p = 0; p < copies; ++p) {
      found.add("block", filled[p], out_dtype), found.add("rows", looked_up[p], dtype);
      one.add("row", filled[p], dtype), other.add("row", again[p], dtype);
    }
    if (out_dtype == dtype) one.require_same(other, "a block, and its rows looked up:");
    return found;
  });
  return 0;
}
