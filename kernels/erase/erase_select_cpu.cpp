// Selection on the CPU: the k-th magnitude of tens of millions of weights in one pass, and bits of what lies beyond it.
//
// A sample says between which two keys the k-th lies, almost surely; one pass counts what is below and copies the few keys between, which
// are then ranked (erase_native.py). The pass reads each weight once and compares it four times: memory bounds it.
#include "../core/parallel.hpp"
#include "../core/room.hpp"
#include "../core/tiles.hpp"
#include "erase_tile.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

typedef int32_t __attribute__((may_alias)) bits32_t;
typedef int64_t __attribute__((may_alias)) bits64_t;

// The keys of n elements of a tile: made in `room`.
template <class T, class Key>
const Key* keys_of(const void* data, int64_t first, int64_t n, Key* __restrict room) {
  const T* from = static_cast<const T*>(data) + first;
  if constexpr (sizeof(T) == sizeof(Key) && sizeof(T) == sizeof(float)) {
    const bits32_t* __restrict bits = reinterpret_cast<const bits32_t*>(from);
    for (int64_t i = 0; i < n; ++i) room[i] = bits[i] & 0x7FFFFFFF;
  } else if constexpr (sizeof(T) == sizeof(Key)) {
    const bits64_t* __restrict bits = reinterpret_cast<const bits64_t*>(from);
    for (int64_t i = 0; i < n; ++i) room[i] = bits[i] & 0x7FFFFFFFFFFFFFFF;
  } else {
    alignas(64) math_t<T> wide[kTile];
    widen_row(from, 1, n, wide);
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (sizeof(Key) == sizeof(float)) {
        room[i] = magnitude_key32(wide[i]);
      } else {
        room[i] = magnitude_key64(static_cast<double>(wide[i]));
      }
    }
  }
  return room;
}

// Calls f with a value of the tensors' type and one of the keys'. float64 is always wide.
template <class Call>
void with_keys(const EraseKeys& k, const Call& f) {
  with_type(k.dtype, [&](auto type) {
    if constexpr (sizeof(type) < sizeof(double)) {
      if (!k.wide) return f(type, int32_t{});
    }
    f(type, int64_t{});
  });
}

// A place in each of n equal parts, spread by the golden ratio's multiples (Weyl), which have no short period.
inline int64_t place(int64_t part, int64_t n, int64_t total) {
  const uint64_t turn = static_cast<uint64_t>(part) * 0x9E3779B97F4A7C15u;
  const double at = (static_cast<double>(part) + static_cast<double>(turn >> 11) * 0x1p-53) / static_cast<double>(n);
  return smaller(static_cast<int64_t>(at * static_cast<double>(total)), total - 1);
}

void sample(const EraseSampleArgs& a) {
  int64_t total = 0;
  for (int64_t t = 0; t < a.keys.count; ++t) total += a.keys.tensors[t].numel;
  with_keys(a.keys, [&](auto type, auto key) {
    using T = decltype(type);
    using Key = decltype(key);
    int64_t t = 0, before = 0;
    for (int64_t i = 0; i < a.n; ++i) {
      const int64_t at = larger(place(i, a.n, total), before);  // places rise with i
      while (at >= before + a.keys.tensors[t].numel) before += a.keys.tensors[t++].numel;
      keys_of<T, Key>(a.keys.tensors[t].data, at - before, 1, static_cast<Key*>(a.out) + i);
    }
  });
}

template <class Key>
constexpr Key kInfinite = sizeof(Key) == sizeof(float) ? static_cast<Key>(kInfinite32) : static_cast<Key>(kInfinite64);

struct TileCounts {
  int64_t of[kEraseCounts];
};

// Counts a tile, in vectors, and copies the keys between to `inside`; returns how many. Flags are looked for eight at a time: there are
// few.
template <class Key>
int64_t bracket_tile(const Key* __restrict keys, int64_t n, Key lo, Key hi, Key* __restrict inside, TileCounts& counts) {
  alignas(64) uint8_t between[kTile];
  Key below = 0, low = 0, high = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Key key = keys[i];
    below += key < lo;
    low += key == lo;
    high += key == hi;
    largest = key > largest ? key : largest;
    between[i] = static_cast<uint8_t>((key > lo) & (key < hi));
  }
  for (int64_t i = n; i % 8 != 0; ++i) between[i] = 0;
  counts.of[kBelow] += below;
  counts.of[kAtLow] += low;
  counts.of[kAtHigh] += high;
  if (largest >= kInfinite<Key>) {
    for (int64_t i = 0; i < n; ++i) counts.of[kNotFinite] += keys[i] >= kInfinite<Key>;
  }
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t eight;
    for (memcpy(&eight, between + i, 8); eight != 0; eight &= eight - 1) inside[found++] = keys[i + __builtin_ctzll(eight) / 8];
  }
  return found;
}

void bracket(const EraseBracketArgs& a) {
  with_keys(a.keys, [&](auto type, auto key) {
    using T = decltype(type);
    using Key = decltype(key);
    const Key lo = static_cast<Key>(a.lo), hi = static_cast<Key>(a.hi);
    each_tile(a.keys.tensors, a.keys.count, a.keys.threads, [&](const auto& tiles) {
      TileCounts counts = {};
      alignas(64) Key room[kTile], inside[kTile];
      tiles([&](int64_t t, int64_t first, int64_t n) {
        const Key* keys = keys_of<T>(a.keys.tensors[t].data, first, n, room);
        const int64_t found = bracket_tile(keys, n, lo, hi, inside, counts);
        if (found == 0) return;
        const int64_t at = __atomic_fetch_add(a.stored, found, __ATOMIC_RELAXED);
        if (at + found <= a.capacity) memcpy(static_cast<Key*>(a.room) + at, inside, static_cast<size_t>(found) * sizeof(Key));
      });
      for (int c = 0; c < kEraseCounts; ++c) __atomic_fetch_add(a.counts + c, counts.of[c], __ATOMIC_RELAXED);
    });
  });
}

void bits(const EraseBitsArgs& a) {
  with_keys(a.keys, [&](auto type, auto key) {
    using T = decltype(type);
    using Key = decltype(key);
    const Key from = static_cast<Key>(a.from);
    const uint32_t flip = a.flip ? 1u : 0u;
    each_tile(a.keys.tensors, a.keys.count, a.keys.threads, [&](const auto& tiles) {
      alignas(64) Key room[kTile];
      alignas(64) uint8_t set[kTile];
      tiles([&](int64_t t, int64_t first, int64_t n) {
        const Key* __restrict keys = keys_of<T>(a.keys.tensors[t].data, first, n, room);
        for (int64_t i = 0; i < n; ++i) set[i] = static_cast<uint8_t>((keys[i] >= from ? 1u : 0u) ^ flip);
        for (int64_t i = n; i % 8 != 0; ++i) set[i] = 0;
        pack_bits(set, (n + 7) / 8, a.out[t] + first / 8);
      });
    });
  });
}

}  // namespace

void erase_sample(const EraseSampleArgs& a) { sample(a); }
void erase_bracket(const EraseBracketArgs& a) { bracket(a); }
void erase_bits(const EraseBitsArgs& a) { bits(a); }

}  // namespace TF_NS
