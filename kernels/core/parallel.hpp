// One parallel region over equal pieces of work. Thread t always gets the same contiguous range, and no result depends on how many
// threads there are: pieces are independent, and sums are made per piece and joined in order (reduce.hpp).
//
// The OpenMP runtime is the one PyTorch has already loaded (python/tenfold/_native.py sees to it). A second runtime in the process would
// bring a second pool of spinning threads.
#pragma once

#include <atomic>
#include <new>
#include <thread>

#include "portable.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace TF_NS {

// work(first, last) for ranges that cover [0, pieces). A thread gets no fewer than `grain` pieces: waking one costs microseconds at best.
// No exception may leave a thread of OpenMP: std::bad_alloc, the only one that kernels throw, comes out here when all have ended.
template <class Work>
inline void parallel_ranges(int64_t pieces, [[maybe_unused]] int threads, const Work& work, [[maybe_unused]] int64_t grain = 1) {
#ifdef _OPENMP
  const int64_t most = pieces / grain;
  const int64_t wanted = most < threads ? most : threads;
  if (wanted > 1) {
    std::atomic<bool> out_of_memory{false};
#pragma omp parallel num_threads(static_cast<int>(wanted))
    {
      const int64_t team = omp_get_num_threads();
      const int64_t me = omp_get_thread_num();
      try {
        work(pieces * me / team, pieces * (me + 1) / team);
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    }
    if (out_of_memory) throw std::bad_alloc();
    return;
  }
#endif
  if (pieces > 0) work(int64_t{0}, pieces);
}

// For std::lock_guard around a few additions. std::mutex would be a weak symbol (room.hpp).
class Lock {
 public:
  void lock() {
    while (taken_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() { taken_.clear(std::memory_order_release); }

 private:
  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;
};

}  // namespace TF_NS
