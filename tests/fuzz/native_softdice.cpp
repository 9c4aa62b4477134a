// Sums over voxels of what is predicted and true, and their gradient: every dtype, activation and layout, labels and maps, masks. How many
// labels are wrong and how many voxels there are of each is equal; other sums of ordinary logits are within the rounding of sums of a few
// hundred floats, gradients too unless 1 - p is raised to a power.
#include "native.hpp"
#include "softdice/softdice_api.hpp"
TF_TABLES(Softdice, softdice)
using namespace tenfold;

constexpr int kIntegerBytes[] = {1, 1, 2, 4, 8};

static int64_t bytes_of(int dtype) { return dtype < kLabelU8 ? Bytes::width(dtype) : kIntegerBytes[dtype - kLabelU8]; }

// Of any dtype of a target; integers from `low` to `high`, numbers >= 0.
static std::vector<unsigned char> labels(Bytes& in, int64_t n, int dtype, int64_t low, int64_t high) {
  if (dtype < kLabelU8) return in.typed(n, dtype, true);
  const int64_t width = bytes_of(dtype);
  std::vector<unsigned char> out(n * width);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t value = low + in.byte() % (high - low + 1);
    std::memcpy(&out[i * width], &value, width);
  }
  return out;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  in.tame = in.flag();
  const int dtype = in.byte() % 4, activation = in.byte() % 3, arithmetic = dtype == 1 ? 1 : 0;
  const bool many = in.byte() % 16 == 0, dense = in.flag(), masked = in.flag(), alike = in.byte() % 4 != 0;
  const int64_t batches = in.size(in.byte() % 16 == 0 ? 0 : 1, 2), classes = in.size(1, many ? 300 : 7);
  const int64_t voxels = in.size(in.byte() % 16 == 0 ? 0 : 1, many ? 70 : in.byte() % 8 == 0 ? 5000 : 400);
  const int kind = dense ? in.byte() % 9 : kLabelU8 + in.byte() % 5;
  const Layout at(in, {batches, classes, voxels}, true), at_map(in, {batches, classes, voxels}, true),
      at_labels(in, {batches, voxels}, true);
  const Layout at_mask(in, {batches, voxels}, true);
  const auto logits = in.typed(at.reach, dtype);
  const int64_t low = in.byte() % 4 == 0 ? -1 : 0, high = (classes < 100 ? classes : 100) - (in.byte() % 4 == 0 ? 0 : 1);
  const auto target = labels(in, dense ? at_map.reach : at_labels.reach, kind, dense ? 0 : low, dense ? 1 : high);
  const auto mask = in.integers<uint8_t>(at_mask.reach, 0, in.flag() ? 1 : 3);
  const auto grad = in.numbers<double>(batches * classes * kSoftdiceSums);
  const double gamma = in.flag() ? 0.0 : 0.25 * in.size(1, 12);
  SoftdiceArgs shared = {};
  shared.logits = {const_cast<unsigned char*>(logits.data()), dtype, at.strides[0], at.strides[1], at.strides[2]};
  shared.target = {const_cast<unsigned char*>(target.data()), kind, at_labels.strides[0], 0, at_labels.strides[1]};
  if (dense) shared.target = {shared.target.data, kind, at_map.strides[0], at_map.strides[1], at_map.strides[2]};
  if (masked) shared.mask = {const_cast<uint8_t*>(mask.data()), kLabelU8, at_mask.strides[0], 0, at_mask.strides[1]};
  shared.batches = batches, shared.classes = classes, shared.voxels = voxels, shared.dense = dense, shared.has_ignore = !dense && in.flag();
  shared.ignore = in.flag() ? -1 : classes - 1, shared.activation = activation, shared.gamma = gamma, shared.squares = in.flag();
  shared.logs = in.flag(), shared.threads = 1;
  on_each("softdice", TF_EACH(softdice), true, [&](const SoftdiceKernels& k) {
    std::vector<unsigned char> lse(activation == kSoftmax ? batches * voxels * Bytes::width(arithmetic) : 0);
    std::vector<double> sums(batches * classes * kSoftdiceSums, -7.0), given = grad, counts;
    std::vector<int64_t> bad(1);
    SoftdiceArgs a = shared;
    a.lse = lse.data(), a.sums = sums.data(), a.bad = bad.data();
    k.forward(a);
    Found found;
    found.add("wrong labels", bad);
    if (bad[0] != 0) return found;  // Python stops here
    double predicted = 0, truth = 0;
    for (size_t i = 0; i < sums.size(); i += kSoftdiceSums) {
      predicted += sums[i + kPrediction], truth += sums[i + kTarget];
      counts.push_back(sums[i + kTarget]);
      if (!shared.squares) require(sums[i + kPredictionSquared] == 0, "softdice", "has squares that nobody wanted");
      if (!shared.logs) require(sums[i + kLogPositive] == 0 && sums[i + kLogNegative] == 0, "softdice", "has unwanted logarithms");
    }
    if (!dense) found.add("voxels", counts);
    if (in.tame && !dense && activation == kSoftmax)
      require(std::fabs(predicted - truth) <= 1e-4 * (1 + truth), "softdice", "has probabilities that do not sum to 1");
    if (in.tame && !dense) found.near("sums", sums, 1e-4);
    // The gradient lies as the logits do, or dense.
    const bool own = alike && at.count > 0 && at.strides[0] * at.strides[1] * at.strides[2] != 0;
    std::vector<unsigned char> out((own ? at.reach : at.count) * Bytes::width(dtype));
    a.out = {out.data(), dtype, own ? at.strides[0] : classes * voxels, own ? at.strides[1] : voxels, own ? at.strides[2] : 1};
    a.sums = given.data();
    k.backward(a);
    if (in.tame && gamma == 0 && dtype == 0)
      found.near("gradient", std::vector<float>(reinterpret_cast<float*>(out.data()), reinterpret_cast<float*>(out.data() + out.size())),
                 1e-3);
    return found;
  });
  return 0;
}
