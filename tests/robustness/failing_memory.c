/* Preloaded by test_out_of_memory.py: the Nth memory that tenfold's native module (aligned_alloc) or PyTorch
   (posix_memalign) asks for is not there. A call is theirs when it returns into one of the watched ranges. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

static struct {
  uintptr_t low, high;
} watched[2];
static long asked, failing;

void failing_memory_watch(int which, uintptr_t low, uintptr_t high) {
  watched[which].low = low;
  watched[which].high = high;
}

/* Count from zero; the Nth fails, none if it is 0. Returns how many were asked for since the last call. */
long failing_memory_arm(long nth) {
  failing = nth;
  return __atomic_exchange_n(&asked, 0, __ATOMIC_SEQ_CST);
}

static int fails(const void* returns_to) {
  const uintptr_t at = (uintptr_t)returns_to;
  for (int i = 0; i < 2; ++i)
    if (watched[i].low <= at && at < watched[i].high) return __atomic_add_fetch(&asked, 1, __ATOMIC_SEQ_CST) == failing;
  return 0;
}

void* aligned_alloc(size_t alignment, size_t size) {
  static void* (*real)(size_t, size_t);
  if (fails(__builtin_return_address(0))) return NULL;
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "aligned_alloc");
  return real(alignment, size);
}

int posix_memalign(void** out, size_t alignment, size_t size) {
  static int (*real)(void**, size_t, size_t);
  if (fails(__builtin_return_address(0))) return ENOMEM;
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "posix_memalign");
  return real(out, alignment, size);
}
