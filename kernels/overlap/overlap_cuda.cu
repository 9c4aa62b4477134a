// Overlap counts on CUDA.
//
// A thread takes 16 neighbouring voxels at a time and holds the pair it is in, with how many voxels of it it has seen, in registers across
// its whole share: in background, most of a volume, it writes nothing until the end. Counts go to a histogram in shared memory while that
// has room (110 labels), and from there once per block to memory. Boxes are read before they are written, so that only the few voxels
// that widen one pay for an atomic operation. What bounds it is reading both volumes once.
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

struct Pass {
  Labels volume[2];
  bool contiguous[2];
  uint64_t limit[2];
  int64_t num_labels;
  int64_t total;
  Wide* counts;
  long long* boxes[2];
  int32_t* outside;
};

template <class T>
struct alignas(16) Sixteen {
  T v[kEach];
};

// Voxels first .. first + count - 1 in row-major order.
template <class T>
__device__ void load(const Labels& v, bool contiguous, int64_t first, int count, T (&out)[kEach]) {
  const T* const data = static_cast<const T*>(v.data);
  if (contiguous) {
    const T* const from = data + first;
    if (count == kEach && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      const Sixteen<T> all = *reinterpret_cast<const Sixteen<T>*>(from);
#pragma unroll
      for (int i = 0; i < kEach; ++i) out[i] = all.v[i];
    } else {
      for (int i = 0; i < count; ++i) out[i] = from[i];
    }
    return;
  }
  for (int i = 0; i < count; ++i) {
    int64_t rest = first + i, offset = 0;
    for (int axis = v.ndim - 1; axis >= 0; --axis) {
      offset += rest % v.sizes[axis] * v.strides[axis];
      rest /= v.sizes[axis];
    }
    out[i] = data[offset];
  }
}

__device__ void widen(long long* box, int ndim, const int64_t* at, int64_t last) {
  for (int axis = 0; axis < ndim; ++axis) {
    const long long low = at[axis], high = axis == ndim - 1 ? last : at[axis] + 1;
    if (low < box[axis]) atomicMin(&box[axis], low);
    if (high > box[ndim + axis]) atomicMax(&box[ndim + axis], high);
  }
}

template <class A, class B, bool kShared>
__global__ void __launch_bounds__(kThreads) counts_kernel(const __grid_constant__ Pass p) {
  __shared__ uint32_t bins[kShared ? kSharedBins : 1];
  const int64_t k = p.num_labels;
  if (kShared) {
    for (int64_t i = threadIdx.x; i < k * k; i += kThreads) bins[i] = 0;
    __syncthreads();
  }
  const int ndim = p.volume[0].ndim;
  const int64_t row = p.volume[0].sizes[ndim - 1];
  const bool boxes = p.boxes[0] != nullptr;
  uint64_t x = 0, y = 0;
  uint32_t seen = 0;
  const auto flush = [&] {
    if (seen == 0) return;
    if (kShared) {
      atomicAdd(&bins[x * k + y], seen);
    } else {
      atomicAdd(&p.counts[x * k + y], static_cast<Wide>(seen));
    }
    seen = 0;
  };
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kEach;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach; first < p.total; first += step) {
    const int count = p.total - first < kEach ? static_cast<int>(p.total - first) : kEach;
    A a[kEach];
    B b[kEach];
    load(p.volume[0], p.contiguous[0], first, count, a);
    load(p.volume[1], p.contiguous[1], first, count, b);
    for (int i = 0; i < count;) {
      const uint64_t u = a[i], v = b[i];
      int end = i + 1;
      while (end < count && a[end] == a[i] && b[end] == b[i] && !(boxes && (first + end) % row == 0)) ++end;
      if (u >= p.limit[0] || v >= p.limit[1]) {
        *p.outside = 1;
      } else {
        const uint64_t top = static_cast<uint64_t>(k) - 1;
        const uint64_t cu = u < top ? u : top, cv = v < top ? v : top;
        if (cu != x || cv != y || seen > 0xFFFF0000u) {
          flush();
          x = cu;
          y = cv;
        }
        seen += static_cast<uint32_t>(end - i);
        if (boxes) {
          int64_t at[kMostAxes];
          int64_t rest = first + i;
          for (int axis = ndim - 1; axis >= 0; --axis) {
            at[axis] = rest % p.volume[0].sizes[axis];
            rest /= p.volume[0].sizes[axis];
          }
          const int64_t last = at[ndim - 1] + end - i;
          widen(p.boxes[0] + cu * 2 * ndim, ndim, at, last);
          widen(p.boxes[1] + cv * 2 * ndim, ndim, at, last);
        }
      }
      i = end;
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
  switch (p.volume[1].bytes) {
    case 1: return launch_counts<A, uint8_t>(p, stream);
    case 2: return launch_counts<A, uint16_t>(p, stream);
    case 4: return launch_counts<A, uint32_t>(p, stream);
    default: return launch_counts<A, uint64_t>(p, stream);
  }
}

// ---- packed masks ---------------------------------------------------------------------------------------------------------------

struct Lut {
  LutArgs a;
  bool contiguous;
  uint64_t limit;
  int64_t total;
  int32_t* outside;
};

template <class T>
__global__ void __launch_bounds__(kThreads) lut_kernel(const __grid_constant__ Lut p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.total; i += step) {
    T one[kEach];
    load(p.a.volume, p.contiguous, i, 1, one);
    const uint64_t label = one[0];
    if (label >= p.limit) *p.outside = 1;
    p.a.words[i] = p.a.lut[label < p.limit ? label : 0];
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
  p.volume[0] = a.target;
  p.volume[1] = a.pred;
  const uint64_t most = a.clamp ? uint64_t{1} << 63 : static_cast<uint64_t>(a.num_labels);
  for (int side = 0; side < 2; ++side) {
    p.contiguous[side] = contiguous(p.volume[side]);
    p.limit[side] = limit_of(p.volume[side], most);
  }
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
  const Lut p = {a, contiguous(a.volume), limit_of(a.volume, static_cast<uint64_t>(a.num_labels)), voxels_of(a.volume), outside};
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
