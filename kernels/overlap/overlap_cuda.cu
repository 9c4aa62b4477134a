// Overlap counts on CUDA.
//
// A thread takes 16 neighbouring voxels at a time and holds the pair of labels it is in, and how many voxels of it are not yet counted, in
// registers across its whole share. Where all 16 are of that pair, as in background, it compares wide words and writes nothing; elsewhere
// it reads them once more, from the first-level cache, one by one. Counts go to a histogram in shared memory while that has room (110
// labels), and from there once per block to memory. Boxes are read before they are written, so that only the few voxels that widen one pay
// for an atomic operation. What bounds it is reading both volumes once.
#include "overlap_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>

#include "../core/portable.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kEach = 16;
constexpr int kSharedBins = 12288;  // 48 KiB of 32-bit counts

using Wide = unsigned long long;

int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

unsigned blocks_for(int64_t pieces) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(pieces, multiprocessors() * 8)));
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

bool contiguous(const Labels& v) {
  int64_t expected = 1;
  for (int i = v.ndim - 1; i >= 0; --i) {
    if (v.sizes[i] > 1 && v.strides[i] != expected) return false;
    expected *= v.sizes[i];
  }
  return true;
}

int64_t voxels_of(const Labels& v) {
  int64_t n = 1;
  for (int i = 0; i < v.ndim; ++i) n *= v.sizes[i];
  return n;
}

uint64_t limit_of(const Labels& labels, uint64_t most) {
  const int bits = 8 * labels.bytes - (labels.is_signed ? 1 : 0);
  return std::min(most, bits >= 63 ? uint64_t{1} << 63 : uint64_t{1} << bits);
}

// A volume whose row-major index becomes a place by multiplications: 64-bit divisions are calls to a function on a GPU.
struct Volume {
  Labels v;
  double inverse[kMostAxes];
  bool contiguous;
  uint64_t limit;
};

Volume volume_of(const Labels& v, uint64_t most) {
  Volume out = {v, {}, contiguous(v), limit_of(v, most)};
  for (int axis = 0; axis < v.ndim; ++axis) out.inverse[axis] = 1.0 / static_cast<double>(std::max<int64_t>(1, v.sizes[axis]));
  return out;
}

struct Pass {
  Volume volume[2];
  bool wide;  // both may be read 16 bytes at a time
  int64_t num_labels;
  int64_t total;
  Wide* counts;
  long long* boxes[2];
  int32_t* outside;
};

// rest % sizes[axis], and rest becomes rest / sizes[axis]; exact below 2^52.
__device__ __forceinline__ int64_t split(const Volume& p, int axis, int64_t& rest) {
  const int64_t n = p.v.sizes[axis];
  int64_t quotient = static_cast<int64_t>(static_cast<double>(rest) * p.inverse[axis]);
  int64_t left = rest - quotient * n;
  if (left < 0) {
    --quotient;
    left += n;
  } else if (left >= n) {
    ++quotient;
    left -= n;
  }
  rest = quotient;
  return left;
}

template <class T>
__device__ __forceinline__ T value_at(const Volume& p, int64_t index) {
  const T* const data = static_cast<const T*>(p.v.data);
  if (p.contiguous) return data[index];
  int64_t rest = index, offset = 0;
#pragma unroll 1
  for (int axis = p.v.ndim - 1; axis >= 0; --axis) offset += split(p, axis, rest) * p.v.strides[axis];
  return data[offset];
}

struct alignas(16) Quad {
  uint64_t low, high;
};

// Whether kEach values, aligned, are all `value`.
template <class T>
__device__ __forceinline__ bool uniform(const Volume& p, int64_t first, uint64_t value) {
  const Quad* const from = reinterpret_cast<const Quad*>(static_cast<const T*>(p.v.data) + first);
  constexpr uint64_t kOnes = sizeof(T) == 8 ? 1 : ~uint64_t{0} / ((uint64_t{1} << (8 * sizeof(T) % 64)) - 1);
  const uint64_t all = value * kOnes;
  bool same = true;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T); ++i) {
    const Quad q = from[i];
    same &= q.low == all && q.high == all;
  }
  return same;
}

__device__ __forceinline__ void widen(long long* box, int ndim, int axis, long long low, long long high) {
  if (low < box[axis]) atomicMin(&box[axis], low);
  if (high > box[ndim + axis]) atomicMax(&box[ndim + axis], high);
}

template <class A, class B, bool kShared>
__global__ void __launch_bounds__(kThreads, 4) counts_kernel(const __grid_constant__ Pass p) {
  __shared__ uint32_t bins[kShared ? kSharedBins : 1];
  const int64_t k = p.num_labels;
  if (kShared) {
    for (int64_t i = threadIdx.x; i < k * k; i += kThreads) bins[i] = 0;
    __syncthreads();
  }
  const int ndim = p.volume[0].v.ndim;
  const int64_t row = p.volume[0].v.sizes[ndim - 1];
  const bool boxes = p.boxes[0] != nullptr;
  const uint64_t top = static_cast<uint64_t>(k) - 1;
  uint64_t x = 0, y = 0;  // the pair of labels that this thread is in, and how many voxels of it are not yet counted
  uint32_t seen = 0;
  const auto flush = [&] {
    if (seen == 0) return;
    const uint64_t bin = (x < top ? x : top) * static_cast<uint64_t>(k) + (y < top ? y : top);
    if (kShared) {
      atomicAdd(&bins[bin], seen);
    } else {
      atomicAdd(&p.counts[bin], static_cast<Wide>(seen));
    }
    seen = 0;
  };
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kEach;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach; first < p.total; first += step) {
    const int count = p.total - first < kEach ? static_cast<int>(p.total - first) : kEach;
    int64_t rest = first;
    const int64_t column = boxes ? split(p.volume[0], ndim - 1, rest) : 0;
    const bool one_row = !boxes || column + count <= row;
    const bool same =
        seen != 0 && count == kEach && p.wide && one_row && uniform<A>(p.volume[0], first, x) && uniform<B>(p.volume[1], first, y);
#pragma unroll 1
    for (int i = 0; i < count;) {  // run by run
      uint64_t u = x, v = y;
      int end = count;
      if (!same) {
        u = value_at<A>(p.volume[0], first + i);
        v = value_at<B>(p.volume[1], first + i);
        end = i + 1;
#pragma unroll 1
        for (; end < count; ++end) {
          if (value_at<A>(p.volume[0], first + end) != u || value_at<B>(p.volume[1], first + end) != v) break;
          if (!one_row) break;  // voxel by voxel where a row ends on the way
        }
      }
      const int begin = i;
      i = end;
      if (u >= p.volume[0].limit || v >= p.volume[1].limit) {
        *p.outside = 1;
        continue;
      }
      if (u != x || v != y || seen > 0xFFFF0000u) {
        flush();
        x = u;
        y = v;
      }
      seen += static_cast<uint32_t>(end - begin);
      if (!boxes) continue;
      long long* const target = p.boxes[0] + (u < top ? u : top) * 2 * static_cast<uint64_t>(ndim);
      long long* const pred = p.boxes[1] + (v < top ? v : top) * 2 * static_cast<uint64_t>(ndim);
      rest = first + begin;
#pragma unroll 1
      for (int axis = ndim - 1; axis >= 0; --axis) {
        const int64_t at = split(p.volume[0], axis, rest);
        const int64_t behind = axis == ndim - 1 ? at + (end - begin) : at + 1;
        widen(target, ndim, axis, at, behind);
        widen(pred, ndim, axis, at, behind);
      }
    }
  }
  flush();
  if (kShared) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k * k; i += kThreads) {
      if (bins[i] != 0) atomicAdd(&p.counts[i], static_cast<Wide>(bins[i]));
    }
  }
}

template <class A, class B>
void launch_counts(const Pass& p, cudaStream_t stream) {
  const unsigned grid = blocks_for((p.total + kThreads * kEach - 1) / (kThreads * kEach));
  if (p.num_labels * p.num_labels <= kSharedBins) {
    counts_kernel<A, B, true><<<grid, kThreads, 0, stream>>>(p);
  } else {
    counts_kernel<A, B, false><<<grid, kThreads, 0, stream>>>(p);
  }
}

template <class A>
void launch_counts_of(const Pass& p, cudaStream_t stream) {
  switch (p.volume[1].v.bytes) {
    case 1: return launch_counts<A, uint8_t>(p, stream);
    case 2: return launch_counts<A, uint16_t>(p, stream);
    case 4: return launch_counts<A, uint32_t>(p, stream);
    default: return launch_counts<A, uint64_t>(p, stream);
  }
}

// ---- packed masks ---------------------------------------------------------------------------------------------------------------

struct Lut {
  LutArgs a;
  Volume volume;
  int64_t total;
  int32_t* outside;
};

template <class T>
__global__ void __launch_bounds__(kThreads) lut_kernel(const __grid_constant__ Lut p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.total; i += step) {
    const uint64_t label = value_at<T>(p.volume, i);
    if (label >= p.volume.limit) *p.outside = 1;
    p.a.words[i] = p.a.lut[label < p.volume.limit ? label : 0];
  }
}

struct Pack {
  PackArgs a;
  int64_t words;
  bool unpack;
};

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Pack p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; w < p.a.channels * p.words; w += step) {
    const int64_t at = w % p.words * 64;
    const int64_t n = p.a.count - at < 64 ? p.a.count - at : 64;
    uint8_t* const masks = p.a.masks + w / p.words * p.a.channel_stride + at;
    if (p.unpack) {
      const uint64_t bits = static_cast<uint64_t>(p.a.words[w]);
      for (int64_t i = 0; i < n; ++i) masks[i] = bits >> i & 1;
    } else {
      uint64_t bits = 0;
      for (int64_t i = 0; i < n; ++i) bits |= static_cast<uint64_t>(masks[i] != 0) << i;
      p.a.words[w] = static_cast<int64_t>(bits);
    }
  }
}

struct Count {
  BitCountArgs a;
  bool owners;
};

__device__ void add_to(int64_t* to, unsigned value) {
  if (value != 0) atomicAdd(reinterpret_cast<Wide*>(to), static_cast<Wide>(value));
}

// One block per channel (x) and share of its words (y).
__global__ void __launch_bounds__(kThreads) multihot_kernel(const __grid_constant__ Count p) {
  __shared__ unsigned sums[3];
  if (threadIdx.x < 3) sums[threadIdx.x] = 0;
  __syncthreads();
  const int64_t c = blockIdx.x;
  const int64_t first = p.a.words * blockIdx.y / gridDim.y, last = p.a.words * (blockIdx.y + 1) / gridDim.y;
  unsigned both = 0, left = 0, right = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const Wide x = static_cast<Wide>(p.a.a[c * p.a.words + i]), y = static_cast<Wide>(p.a.b[c * p.a.words + i]);
    both += __popcll(x & y);
    left += __popcll(x);
    right += __popcll(y);
  }
  atomicAdd(&sums[0], both);
  atomicAdd(&sums[1], left);
  atomicAdd(&sums[2], right);
  __syncthreads();
  if (threadIdx.x < 3) add_to(p.a.counts + 3 * c + threadIdx.x, sums[threadIdx.x]);
}

__global__ void __launch_bounds__(kThreads) owners_kernel(const __grid_constant__ Count p) {
  __shared__ unsigned sums[3 * 64];
  if (threadIdx.x < 3 * 64) sums[threadIdx.x] = 0;
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.a.words; i += step) {
    const uint64_t x = static_cast<uint64_t>(p.a.a[i]), y = static_cast<uint64_t>(p.a.b[i]);
    for (int c = 0; (x | y) >> c != 0; ++c) {
      if (x & y & (uint64_t{1} << c)) atomicAdd(&sums[3 * c], 1u);
      if (x >> c & 1) atomicAdd(&sums[3 * c + 1], 1u);
      if (y >> c & 1) atomicAdd(&sums[3 * c + 2], 1u);
      if (c == 63) break;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < 3 * p.a.channels; i += kThreads) add_to(p.a.counts + i, sums[i]);
}

}  // namespace

const char* overlap_counts(const OverlapArgs& a, int32_t* outside, void* stream) {
  Pass p = {};
  const uint64_t most = a.clamp ? uint64_t{1} << 63 : static_cast<uint64_t>(a.num_labels);
  p.volume[0] = volume_of(a.target, most);
  p.volume[1] = volume_of(a.pred, most);
  p.wide = true;
  for (const Volume& v : p.volume) p.wide &= v.contiguous && reinterpret_cast<uintptr_t>(v.v.data) % 16 == 0;
  p.num_labels = a.num_labels;
  p.total = voxels_of(a.target);
  p.counts = reinterpret_cast<Wide*>(a.counts);
  p.boxes[0] = reinterpret_cast<long long*>(a.box_target);
  p.boxes[1] = reinterpret_cast<long long*>(a.box_pred);
  p.outside = outside;
  if (p.total == 0) return nullptr;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.target.bytes) {
    case 1: launch_counts_of<uint8_t>(p, on); break;
    case 2: launch_counts_of<uint16_t>(p, on); break;
    case 4: launch_counts_of<uint32_t>(p, on); break;
    default: launch_counts_of<uint64_t>(p, on); break;
  }
  return launched();
}

const char* label_lut(const LutArgs& a, int32_t* outside, void* stream) {
  const Lut p = {a, volume_of(a.volume, static_cast<uint64_t>(a.num_labels)), voxels_of(a.volume), outside};
  if (p.total == 0) return nullptr;
  const unsigned grid = blocks_for((p.total + kThreads - 1) / kThreads);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.volume.bytes) {
    case 1: lut_kernel<uint8_t><<<grid, kThreads, 0, on>>>(p); break;
    case 2: lut_kernel<uint16_t><<<grid, kThreads, 0, on>>>(p); break;
    case 4: lut_kernel<uint32_t><<<grid, kThreads, 0, on>>>(p); break;
    default: lut_kernel<uint64_t><<<grid, kThreads, 0, on>>>(p); break;
  }
  return launched();
}

const char* pack_bits(const PackArgs& a, bool unpack, void* stream) {
  const Pack p = {a, (a.count + 63) / 64, unpack};
  if (a.channels * p.words == 0) return nullptr;
  const unsigned grid = blocks_for((a.channels * p.words + kThreads - 1) / kThreads);
  pack_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return launched();
}

const char* bit_counts(const BitCountArgs& a, bool owners, void* stream) {
  const Count p = {a, owners};
  if (a.words == 0 || a.channels == 0) return nullptr;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (owners) {
    const unsigned grid = blocks_for((a.words + kThreads - 1) / kThreads);
    owners_kernel<<<grid, kThreads, 0, on>>>(p);
  } else {
    const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(a.words / 4096, 4 * multiprocessors() / a.channels));
    const dim3 grid(static_cast<unsigned>(a.channels), static_cast<unsigned>(shares));
    multihot_kernel<<<grid, kThreads, 0, on>>>(p);
  }
  return launched();
}

}  // namespace TF_NS
