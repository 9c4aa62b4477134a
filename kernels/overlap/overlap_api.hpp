// What crosses the boundary between Python's door and the overlap kernels: plain structures, no code.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int kMostAxes = 8;

// A label volume: strides in elements, of either sign; `bytes` per label (1, 2, 4, 8).
struct Labels {
  const void* data;
  int32_t bytes;
  bool is_signed;
  int32_t ndim;
  int64_t sizes[kMostAxes];
  int64_t strides[kMostAxes];
};

// With `clamp`, labels of K - 1 and more are counted as K - 1, and only negative ones are wrong.
// counts[K * K] is added to; boxes, if not null, are [K, 2 * ndim] and written. The two volumes have one shape.
struct OverlapArgs {
  Labels target;
  Labels pred;
  int64_t num_labels;
  int64_t* counts;
  int64_t* box_target;
  int64_t* box_pred;
  bool clamp;
  int threads;
};

// words[i] = lut[label i] for all voxels, in row-major order of `volume`.
struct LutArgs {
  Labels volume;
  const int64_t* lut;
  int64_t num_labels;
  int64_t* words;
  int threads;
};

// masks: channels x count bytes, 0 or not, channel and voxel strides in bytes; words: channels x ceil(count / 64).
struct PackArgs {
  uint8_t* masks;
  int64_t* words;
  int64_t channels;
  int64_t count;
  int64_t channel_stride;
  int threads;
};

// counts[channels, 3] = |A and B|, |A|, |B|. Packed: one row of `words` words per channel. Owner words: one word per voxel, channel = bit.
struct BitCountArgs {
  const int64_t* a;
  const int64_t* b;
  int64_t channels;
  int64_t words;
  int64_t* counts;
  int threads;
};

struct OverlapKernels {
  bool (*counts)(const OverlapArgs&);  // false: a label is outside [0, num_labels)
  bool (*lut)(const LutArgs&);
  void (*pack)(const PackArgs&);
  void (*unpack)(const PackArgs&);
  void (*multihot)(const BitCountArgs&);
  void (*owners)(const BitCountArgs&);
};

}  // namespace tenfold
