// The plain structures that csrc/ fills and the volume kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// logits [classes, in z, y, x] with unit stride along x -> labels [out z, y, x]: the class with the largest interpolated logit.
struct ResampleArgs {
  const void* logits;
  int dtype;  // DType of dtype.hpp
  int64_t classes;
  int64_t in[3];
  int64_t stride[3];  // of classes, z, y, in elements
  int64_t out[3];
  bool align_corners;
  void* labels;     // contiguous
  int label_bytes;  // 1 or 2
  int threads;
};

struct VolumeKernels {
  void (*resample_argmax)(const ResampleArgs&);
};

// A contiguous integer volume [z, y, x]. connectivity: 6, 18 or 26.
struct ComponentArgs {
  const void* volume;
  int item_bytes;  // 1, 2, 4 or 8, signed or not: values are only compared, and sign-extended where they are reported
  int64_t size[3];
  int connectivity;
  bool multilabel;  // components of equal value; else of whatever is not zero
};

struct Component {
  int64_t value;
  int64_t voxels;
  int64_t lo[3];
  int64_t hi[3];  // behind the last
};

// Where components go: room(context, count) gives memory for so many.
struct ComponentSink {
  void* context;
  Component* (*room)(void* context, int64_t count);
};

struct ComponentKernels {
  // Components in the order of their first voxel; numbers 1 .. count into labels (null: not wanted). Returns the count.
  int64_t (*label)(const ComponentArgs&, int32_t* labels, const ComponentSink& sink);
  // Clears, in the volume itself, every component that is not the largest of its value (the first of equals) or is smaller than
  // least_voxels. `chosen` says by value whether it is treated (null: all). Returns how many components were cleared.
  int64_t (*keep_largest)(const ComponentArgs&, const int64_t* chosen, int64_t n_chosen, bool largest_only, int64_t least_voxels);
  // Gives zeros that are shut in by one value (6 neighbours, not reaching the border) that value, in the volume itself. Returns how many
  // voxels were filled.
  int64_t (*fill_holes)(const ComponentArgs&, const int64_t* chosen, int64_t n_chosen);
};

}  // namespace tenfold
