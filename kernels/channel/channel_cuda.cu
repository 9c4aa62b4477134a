// The superposition channel on CUDA: a thread makes neighbouring samples of one row, gains and noise from the counter in registers, so
// that nothing but what is sent and received passes through memory. One block of the generator has two samples; where a row has an even
// number of carriers a thread makes both. The order of operations is that of channel_reference.py, to the bit.
#include "channel_cuda.hpp"

#include "../zo/zo.hpp"

#include <cuda_runtime.h>

#include <type_traits>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr uint32_t kFadingStream = 0, kNoiseStream = 1;
constexpr int kThreads = 256;

template <class T>
struct Parts {
  T re, im;
};

template <class T>
__device__ T one(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const T*>(view.data)[row * view.row + user * view.user];
}

template <class T>
__device__ Parts<T> sample(const PowerView& view, int64_t row, int64_t user, int64_t carrier) {
  const T* const at = static_cast<const T*>(view.data) + 2 * (row * view.row + user * view.user + carrier * view.carrier);
  return {at[0], at[1]};
}

// Samples i, ..., i + kEach - 1 of a stream, each of two normals; i is even where kEach is 2.
template <int kEach>
__device__ void normals(const Sequence& s, uint64_t i, float (&z)[2 * kEach]) {
  float drawn[4];
  gaussian_block(i / 2, s, drawn);
  if constexpr (kEach == 2) {
    for (int j = 0; j < 4; ++j) z[j] = drawn[j];
  } else {
    const bool second = (i & 1) != 0;
    z[0] = second ? drawn[2] : drawn[0];
    z[1] = second ? drawn[3] : drawn[1];
  }
}

// One user's gains in one row, carriers k, ..., k + kEach - 1.
template <class T, int kEach>
__device__ void gains_at(const ChannelArgs& a, int64_t row, int64_t user, int64_t k, Parts<T> (&g)[kEach]) {
  if (a.gains.data != nullptr) {
    for (int j = 0; j < kEach; ++j) g[j] = sample<T>(a.gains, row, user, k + j);
    return;
  }
  const int64_t faded = a.block == 1 ? a.first + row : (a.first + row) / a.block;
  const T scale = one<T>(a.scale, row, user), mean = one<T>(a.mean, row, user);
  float z[2 * kEach];
  normals<kEach>(make_sequence(a.seed, kFadingStream, kGaussian, a.offset),
                 static_cast<uint64_t>((faded * a.shape.users + user) * a.shape.carriers + k), z);
  for (int j = 0; j < kEach; ++j) g[j] = {static_cast<T>(z[2 * j]) * scale + mean, static_cast<T>(z[2 * j + 1]) * scale};
}

// Calls visit(row, k) for every kEach-th carrier of every row.
template <int kEach, class Visit>
__device__ void each_place(const ChannelArgs& a, const Visit& visit) {
  const int64_t wide = a.shape.carriers / kEach, all = a.shape.rows * wide, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const int64_t row = i / wide;
    visit(row, (i - row * wide) * kEach);
  }
}

struct alignas(16) Packet {
  float v[4];
};

template <class T, int kEach>
__device__ void put(const ChannelArgs& a, int64_t at, const Parts<T> (&y)[kEach]) {
  Parts<T>* const out = static_cast<Parts<T>*>(a.received) + at;
  if constexpr (kEach == 2 && sizeof(T) == 4) {
    *reinterpret_cast<Packet*>(out) = {{y[0].re, y[0].im, y[1].re, y[1].im}};
  } else {
    for (int j = 0; j < kEach; ++j) out[j] = y[j];
  }
}

template <class T, int kEach>
__global__ void __launch_bounds__(kThreads) channel_kernel(const __grid_constant__ ChannelArgs a) {
  const Sequence noise = make_sequence(a.seed, kNoiseStream, kGaussian, a.offset);
  each_place<kEach>(a, [&](int64_t row, int64_t k) {
    Parts<T> y[kEach] = {};
    for (int64_t n = 0; n < a.shape.users; ++n) {
      Parts<T> g[kEach];
      gains_at<T, kEach>(a, row, n, k, g);
      for (int j = 0; j < kEach; ++j) {
        const Parts<T> u = sample<T>(a.transmit, row, n, k + j);
        y[j].re += g[j].re * u.re - g[j].im * u.im;
        y[j].im += g[j].re * u.im + g[j].im * u.re;
      }
    }
    const int64_t at = row * a.shape.carriers + k;
    float z[2 * kEach];
    normals<kEach>(noise, static_cast<uint64_t>(a.first * a.shape.carriers + at), z);
    const T size = sqrt(one<T>(a.noise, row, 0) * T(0.5)), alpha = a.alpha.data == nullptr ? T(1) : one<T>(a.alpha, row, 0);
    for (int j = 0; j < kEach; ++j) {
      y[j].re = (y[j].re + static_cast<T>(z[2 * j]) * size) * alpha;
      y[j].im = (y[j].im + static_cast<T>(z[2 * j + 1]) * size) * alpha;
    }
    put<T, kEach>(a, at, y);
  });
}

template <class T, int kEach>
__global__ void __launch_bounds__(kThreads) gains_kernel(const __grid_constant__ ChannelArgs a) {
  each_place<kEach>(a, [&](int64_t row, int64_t k) {
    for (int64_t n = 0; n < a.shape.users; ++n) {
      Parts<T> g[kEach];
      gains_at<T, kEach>(a, row, n, k, g);
      put<T, kEach>(a, (row * a.shape.users + n) * a.shape.carriers + k, g);
    }
  });
}

template <class T, int kEach>
__global__ void __launch_bounds__(kThreads) wanted_kernel(const __grid_constant__ ChannelArgs a) {
  each_place<kEach>(a, [&](int64_t row, int64_t k) {
    Parts<T> s[kEach] = {};
    for (int64_t n = 0; n < a.shape.users; ++n) {
      const T c = sqrt(one<T>(a.rho, row, n));
      for (int j = 0; j < kEach; ++j) {
        const Parts<T> t = sample<T>(a.transmit, row, n, k + j);
        s[j].re += c * t.re;
        s[j].im += c * t.im;
      }
    }
    put<T, kEach>(a, row * a.shape.carriers + k, s);
  });
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

dim3 grid_of(const ChannelArgs& a, int64_t each) {
  const int64_t blocks = (a.shape.rows * (a.shape.carriers / each) + kThreads - 1) / kThreads;
  constexpr int64_t kMost = int64_t{1} << 20;
  return dim3(static_cast<unsigned>(blocks < kMost ? blocks : kMost));
}

// run(type, samples of a thread) with both as types.
template <class Run>
const char* with_form(const ChannelArgs& a, const Run& run) {
  const bool pairs = a.shape.carriers % 2 == 0;
  const auto with_type = [&](auto type) {
    pairs ? run(type, std::integral_constant<int, 2>()) : run(type, std::integral_constant<int, 1>());
  };
  a.shape.dtype == 1 ? with_type(double()) : with_type(float());
  return launched();
}

}  // namespace

const char* channel(const ChannelArgs& a, void* stream) {
  return with_form(a, [&](auto type, auto each) {
    const dim3 grid = grid_of(a, each);
    channel_kernel<decltype(type), decltype(each)::value><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
}

const char* channel_gains(const ChannelArgs& a, void* stream) {
  return with_form(a, [&](auto type, auto each) {
    const dim3 grid = grid_of(a, each);
    gains_kernel<decltype(type), decltype(each)::value><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
}

const char* channel_wanted(const ChannelArgs& a, void* stream) {
  return with_form(a, [&](auto type, auto each) {
    const dim3 grid = grid_of(a, each);
    wanted_kernel<decltype(type), decltype(each)::value><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
}

}  // namespace TF_NS
