// New memory for large results, on the CPU.
#pragma once

#include "portable.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace TF_NS {

// Memory that is new comes page by page, and in a virtual machine that takes as long as a pass: larger pages, where the system has them.
inline void ask_for_large_pages(void* out, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 12;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(out) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(out) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (bytes >= 1 << 23) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: failing changes nothing
#endif
}

}  // namespace TF_NS
