// Streaming log-sum-exp over a chunk of products that cuBLAS has just written (and that are still in the second-level cache).
// One thread block reads one run of one row; its threads keep a pair (max, sum) each and join them, in an order that depends on
// the shapes alone.
#include "logprob_cuda.hpp"

#include "logprob.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

__device__ Lse join_warp(Lse mine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Lse other = {__shfl_down_sync(0xFFFFFFFFu, mine.max, distance), __shfl_down_sync(0xFFFFFFFFu, mine.sum, distance)};
    mine = lse_join(mine, other);
  }
  return mine;
}

__device__ Lse join_block(Lse mine) {
  __shared__ Lse warps[kThreads / kWarp];
  mine = join_warp(mine);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x >= kWarp) return mine;
  return join_warp(threadIdx.x < kThreads / kWarp ? warps[threadIdx.x] : lse_empty());
}

__global__ void __launch_bounds__(kThreads) lse_kernel(const tenfold::LseArgs a) {
  const int64_t row = blockIdx.x;
  const int64_t split = blockIdx.y;
  const int64_t begin = a.columns * split / a.splits;
  const int64_t end = a.columns * (split + 1) / a.splits;
  const float* products = a.products + row * a.stride;
  const int64_t target = a.targets[row] - a.first;
  Lse state = lse_empty();
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    const float logit = a.bias != nullptr ? products[c] + a.bias[c] : products[c];
    if (c == target) a.target_logit[row] = logit;
    state = lse_push(state, logit);
  }
  state = join_block(state);
  if (threadIdx.x == 0) {
    a.max[split * a.part_stride + row] = state.max;
    a.sum[split * a.part_stride + row] = state.sum;
  }
}

}  // namespace

const char* lse_partials(const tenfold::LseArgs& a, void* stream) {
  if (a.n_rows == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(a.n_rows), static_cast<unsigned>(a.splits));
  lse_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace TF_NS
