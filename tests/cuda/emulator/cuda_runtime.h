// As much of CUDA as the kernels of this repository use, on the host: each thread of a block is a fiber, blocks run one after the other.
// With it their traversal (tiles, tails, strides, shuffles, barriers) is tested where there is no GPU. Not a model of speed or of races.
// Launches, which C++ has no syntax for, are rewritten by tests/cuda/emulate.py.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

struct Barrier {
  int waiting = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t slot[2][32];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool finished = false;
  unsigned exchanges = 0;
};

constexpr size_t kStack = 128 * 1024;

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Barrier block_barrier;
inline unsigned current = 0;
inline void (*body)(void*) = nullptr;
inline void* argument = nullptr;

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

inline int unfinished(unsigned begin, unsigned end) {
  int count = 0;
  for (unsigned i = begin; i < end && i < fibers.size(); ++i) count += !fibers[i].finished;
  return count;
}

inline void wait(Barrier& b, unsigned begin, unsigned end) {
  const unsigned generation = b.generation;
  if (++b.waiting == unfinished(begin, end)) {
    b.waiting = 0;
    ++b.generation;
    return;
  }
  while (b.generation == generation) yield();
}

inline void enter() {
  body(argument);
  fibers[current].finished = true;
  swapcontext(&fibers[current].context, &scheduler);
}

}  // namespace emulator

inline dim3 blockIdx, gridDim, blockDim;
inline struct {
  struct {
    operator unsigned() const { return emulator::current; }
  } x;
} threadIdx;

template <class T>
T emulated_exchange(T value, unsigned lane) {
  using namespace emulator;
  static_assert(sizeof(T) <= sizeof(uint64_t), "one register");
  Fiber& me = fibers[current];
  const unsigned first = current / 32 * 32;
  Warp& warp = warps[current / 32];
  uint64_t* slot = warp.slot[me.exchanges++ % 2];
  std::memcpy(&slot[current % 32], &value, sizeof(T));
  wait(warp.barrier, first, first + 32);
  T out;
  std::memcpy(&out, &slot[lane % 32], sizeof(T));
  return out;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulated_exchange(value, static_cast<unsigned>(lane));
}
template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const unsigned lane = emulator::current % 32 + static_cast<unsigned>(distance);
  return emulated_exchange(value, lane < 32 ? lane : emulator::current % 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated_exchange(value, emulator::current % 32 ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const int lane = static_cast<int>(emulator::current % 32) - distance;
  return emulated_exchange(value, lane >= 0 ? static_cast<unsigned>(lane) : emulator::current % 32);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  unsigned set = 0;
  for (int lane = 0; lane < 32; ++lane) set |= (__shfl_sync(mask, value ? 1u : 0u, lane) != 0 ? 1u : 0u) << lane;
  return set;
}
// Threads take turns only where they wait for each other.
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  if (value < before) *at = value;
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  if (value > before) *at = value;
  return before;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline void __syncwarp() {
  const unsigned first = emulator::current / 32 * 32;
  emulator::wait(emulator::warps[first / 32].barrier, first, first + 32);
}
inline void __syncthreads() { emulator::wait(emulator::block_barrier, 0, static_cast<unsigned>(emulator::fibers.size())); }

template <class P>
struct EmulatedCall {
  void (*kernel)(P);
  const P* p;
  static void run(void* self) {
    const auto* call = static_cast<const EmulatedCall*>(self);
    call->kernel(*call->p);
  }
};

template <class P>
void emulated_launch(dim3 grid, unsigned threads, void (*kernel)(P), const P& p) {
  using namespace emulator;
  EmulatedCall<P> call = {kernel, &p};
  body = &EmulatedCall<P>::run;
  argument = &call;
  gridDim = grid;
  blockDim = dim3(threads);
  std::vector<std::unique_ptr<char[]>> stacks;
  for (unsigned i = 0; i < threads; ++i) stacks.emplace_back(new char[kStack]);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      fibers = std::vector<Fiber>(threads);
      warps = std::vector<Warp>((threads + 31) / 32);
      block_barrier = {};
      for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = stacks[i].get();
        fibers[i].context.uc_stack.ss_size = kStack;
        fibers[i].context.uc_link = nullptr;
        makecontext(&fibers[i].context, enter, 0);
      }
      for (int left = static_cast<int>(threads), idle = 0; left > 0;) {
        for (current = 0; current < threads; ++current) {
          if (!fibers[current].finished) swapcontext(&scheduler, &fibers[current].context);
        }
        const int now = unfinished(0, threads);
        idle = now == left ? idle + 1 : 0;
        if (idle > 100000) {
          std::fprintf(stderr, "emulator: the threads of a block wait for each other\n");
          std::abort();
        }
        left = now;
      }
    }
  }
}

// ---- the runtime's functions: one device with one multiprocessor, all memory on it, every launch done when it returns -------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {cudaMemoryTypeDevice, 0};
  return cudaSuccess;
}
