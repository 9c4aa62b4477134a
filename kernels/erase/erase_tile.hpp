// What the CPU passes of this family share: lists of contiguous tensors by tiles, and bits by bytes.
#pragma once

#include "../core/parallel.hpp"
#include "../core/tiles.hpp"
#include "erase.hpp"

namespace TF_NS {

// erase_select_cpu.cpp, for the table in erase_cpu.cpp.
void erase_sample(const tenfold::EraseSampleArgs& a);
void erase_bracket(const tenfold::EraseBracketArgs& a);
void erase_bits(const tenfold::EraseBitsArgs& a);

namespace {

constexpr int64_t kTile = 2048;
constexpr int64_t kGrain = 16;  // tiles a thread should have: 32,768 elements, as in PyTorch

// Calls work(tiles) on each thread; tiles(visit) then calls visit(tensor, first element, number of elements) for the thread's share.
template <class Tensor, class Work>
void each_tile(const Tensor* tensors, int64_t count, int threads, const Work& work) {
  int64_t all = 0;
  for (int64_t t = 0; t < count; ++t) all += pieces_of(tensors[t].numel, kTile);
  parallel_ranges(
      all, threads,
      [&](int64_t begin, int64_t end) {
        work([&](const auto& visit) {
          int64_t t = 0, before = 0;
          for (int64_t tile = begin; tile < end; ++tile) {
            while (tile >= before + pieces_of(tensors[t].numel, kTile)) before += pieces_of(tensors[t++].numel, kTile);
            const int64_t first = (tile - before) * kTile;
            visit(t, first, smaller(kTile, tensors[t].numel - first));
          }
        });
      },
      kGrain);
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "eight flags are read as one word");

// Eight bytes of 0 or 1 to the bits of one: their product with this number brings flag j to bit 56 + j, and nothing carries.
inline void pack_bits(const uint8_t* set, int64_t bytes, uint8_t* out) {
  for (int64_t b = 0; b < bytes; ++b) {
    uint64_t eight;
    memcpy(&eight, set + 8 * b, 8);
    out[b] = static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
  }
}

}  // namespace
}  // namespace TF_NS
