// A mask and its surface as rows of bits, inside a box.
//
// Axes are called a, b, c here, c the one along which voxels lie next to each other in memory. A row of voxels is a row of bits, and what
// happens to a voxel and its neighbours is done to 64 of them with a few operations on words:
//   voxel x of the box is bit x + 1, so that bit 0 and the bit behind the last are outside; the first and last rows and planes are outside
//   lattice point c lies between bits c and c + 1; it is on the surface when some but not all of the 8 bits around it are set
#pragma once

#include "../core/room.hpp"
#include "../overlap/runs.hpp"
#include "surface_api.hpp"

namespace TF_NS {

using tenfold::Labels;

// A box of voxels, in the internal order of axes.
struct Grid {
  int64_t low[3];  // first voxel along each axis of the volume
  int64_t n[3];    // voxels
  bool flat;       // a 2-D picture: axis a has one voxel and no surface
  int64_t words;   // of a row of voxels

  int64_t voxel_rows() const { return (n[0] + 2) * (n[1] + 2); }
  int64_t voxel_row(int64_t a, int64_t b) const { return (a * (n[1] + 2) + b) * words; }
};

inline Grid make_grid(const int64_t* low, const int64_t* high, bool flat) {
  Grid g = {};
  for (int i = 0; i < 3; ++i) {
    g.low[i] = low[i];
    g.n[i] = high[i] - low[i];
  }
  g.flat = flat;
  g.words = (g.n[2] + 2 + 63) / 64;
  return g;
}

// Bit i: p[i] == label, for i in 0 .. 63.
template <class T>
inline uint64_t equals(const T* p, const T* labels) {
  return ~differs(p, labels);
}

// A volume with its three internal axes.
struct View3 {
  const char* data;
  int64_t stride[3];
};

template <class T>
struct RowReader {
  Room<T> room;
  const T* read(const View3& v, int64_t a, int64_t b, int64_t first, int64_t n) {
    const T* const from = reinterpret_cast<const T*>(v.data) + a * v.stride[0] + b * v.stride[1] + first * v.stride[2];
    if (v.stride[2] == 1) return from;
    T* const to = room.take(n);
    for (int64_t i = 0; i < n; ++i) to[i] = from[i * v.stride[2]];
    return to;
  }
};

// Sets bits first .. last - 1 of a row.
inline void set_bits(uint64_t* row, int64_t first, int64_t last) {
  int64_t w = first / 64;
  const int64_t end = (last - 1) / 64;
  const uint64_t from = ~uint64_t{0} << (first % 64), to = ~uint64_t{0} >> (63 - (last - 1) % 64);
  if (w == end) {
    row[w] |= from & to;
    return;
  }
  row[w++] |= from;
  while (w < end) row[w++] = ~uint64_t{0};
  row[end] |= to;
}

// The voxels of `grid` whose label is one of the organ's, as rows of bits. `member[label]` for labels below num_labels.
template <class T>
void mask_rows(const View3& view, const Grid& g, const int64_t* labels, int64_t n_labels, const uint8_t* member, int64_t num_labels,
               Room<uint64_t>& bits) {
  uint64_t* const out = bits.zeros(g.voxel_rows() * g.words);
  RowReader<T> reader;
  T same[64];
  const bool one = n_labels == 1;
  for (T& s : same) s = static_cast<T>(labels[0]);
  const int64_t n = g.n[2];
  for (int64_t a = 0; a < g.n[0]; ++a) {
    for (int64_t b = 0; b < g.n[1]; ++b) {
      const T* const from = reader.read(view, g.low[0] + a, g.low[1] + b, g.low[2], n);
      uint64_t* const row = out + g.voxel_row(a + 1, b + 1);
      if (!one) {
        pair_runs(from, from, n, [&](int64_t first, int64_t last) {
          const uint64_t label = from[first];
          if (label < static_cast<uint64_t>(num_labels) && member[label]) set_bits(row, first + 1, last + 1);
        });
        continue;
      }
      int64_t x = 0;
      for (; x + 64 <= n; x += 64) {
        const uint64_t found = equals(from + x, same);
        row[x / 64] |= found << 1;
        if (found >> 63) row[x / 64 + 1] |= 1;
      }
      for (; x < n; ++x) row[(x + 1) / 64] |= static_cast<uint64_t>(from[x] == same[0]) << ((x + 1) % 64);
    }
  }
}

// Where a surface's elements are: rows of bits again, with a word of zeros on either side of a row so that shifts need no check.
struct Elements {
  int64_t rows_a, rows_b;
  int64_t words;   // of a row, without the two
  int64_t stride;  // of a row, with them
  Room<uint64_t> bits;
  Room<uint8_t> occupied;  // whether a row has any

  const uint64_t* row(int64_t a, int64_t b) const { return bits.data() + (a * rows_b + b) * stride + 1; }
};

inline void shape_elements(const Grid& g, bool edge, Elements& e) {
  e.rows_a = edge || g.flat ? g.n[0] : g.n[0] + 1;
  e.rows_b = edge ? g.n[1] : g.n[1] + 1;
  e.words = g.words;
  e.stride = g.words + 2;
  e.bits.zeros(e.rows_a * e.rows_b * e.stride);
  e.occupied.zeros(e.rows_a * e.rows_b);
}

// The four rows of voxels around the row (a, b) of lattice points, in the order of the code: (a-1, b-1), (a-1, b), (a, b-1), (a, b).
inline void rows_around(const Grid& g, const uint64_t* voxels, int64_t a, int64_t b, const uint64_t* (&rows)[4]) {
  const int64_t before = g.flat ? 1 : a, after = g.flat ? 1 : a + 1;
  rows[0] = voxels + g.voxel_row(before, b);
  rows[1] = voxels + g.voxel_row(before, b + 1);
  rows[2] = voxels + g.voxel_row(after, b);
  rows[3] = voxels + g.voxel_row(after, b + 1);
}

// Lattice points with some but not all of their neighbours set.
inline void find_surfels(const Grid& g, const uint64_t* voxels, Elements& e) {
  for (int64_t a = 0; a < e.rows_a; ++a) {
    for (int64_t b = 0; b < e.rows_b; ++b) {
      const uint64_t* rows[4];
      rows_around(g, voxels, a, b, rows);
      uint64_t* const out = e.bits.data() + (a * e.rows_b + b) * e.stride + 1;
      uint64_t seen = 0;
      uint64_t some = rows[0][0] | rows[1][0] | rows[2][0] | rows[3][0];
      uint64_t all = rows[0][0] & rows[1][0] & rows[2][0] & rows[3][0];
      for (int64_t w = 0; w < g.words; ++w) {
        const bool last = w + 1 == g.words;
        const uint64_t some_next = last ? 0 : rows[0][w + 1] | rows[1][w + 1] | rows[2][w + 1] | rows[3][w + 1];
        const uint64_t all_next = last ? 0 : rows[0][w + 1] & rows[1][w + 1] & rows[2][w + 1] & rows[3][w + 1];
        out[w] = (some | some >> 1 | some_next << 63) & ~(all & (all >> 1 | all_next << 63));
        seen |= out[w];
        some = some_next;
        all = all_next;
      }
      e.occupied[a * e.rows_b + b] = seen != 0;
    }
  }
}

// Set voxels with a neighbour along an axis that is not set.
inline void find_edges(const Grid& g, const uint64_t* voxels, Elements& e) {
  for (int64_t a = 0; a < e.rows_a; ++a) {
    for (int64_t b = 0; b < e.rows_b; ++b) {
      const uint64_t* const row = voxels + g.voxel_row(a + 1, b + 1);
      const uint64_t *const above = voxels + g.voxel_row(a + 1, b), *const below = voxels + g.voxel_row(a + 1, b + 2);
      const uint64_t *const before = g.flat ? row : voxels + g.voxel_row(a, b + 1), *const after =
                                                                                        g.flat ? row : voxels + g.voxel_row(a + 2, b + 1);
      uint64_t* const out = e.bits.data() + (a * e.rows_b + b) * e.stride + 1;
      uint64_t seen = 0;
      for (int64_t w = 0; w < g.words; ++w) {
        const uint64_t left = row[w] << 1 | (w > 0 ? row[w - 1] >> 63 : 0);
        const uint64_t right = row[w] >> 1 | (w + 1 < g.words ? row[w + 1] << 63 : 0);
        out[w] = row[w] & ~(left & right & above[w] & below[w] & before[w] & after[w]);
        seen |= out[w];
      }
      e.occupied[a * e.rows_b + b] = seen != 0;
    }
  }
}

// The codes of the lattice points of one word: the eight words of bits around it, from which a code is a column.
struct CodeWords {
#if defined(TF_ISA_AVX512)
  __m512i words;
  unsigned code(int bit) const { return _mm512_test_epi64_mask(words, _mm512_set1_epi64(static_cast<int64_t>(uint64_t{1} << bit))); }
#elif defined(TF_ISA_AVX2)
  __m256i low, high;
  unsigned code(int bit) const {
    const __m128i left = _mm_cvtsi32_si128(63 - bit);  // the bit becomes the sign that movemask reads
    const int l = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_sll_epi64(low, left)));
    const int h = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_sll_epi64(high, left)));
    return static_cast<unsigned>(l | h << 4);
  }
#else
  uint64_t words[8];
  unsigned code(int bit) const {
    unsigned out = 0;
    for (int i = 0; i < 8; ++i) out |= static_cast<unsigned>(words[i] >> bit & 1) << i;
    return out;
  }
#endif
};

// Lane 7 - (4 i + 2 j + k) holds the voxels (a - 1 + i, b - 1 + j, c - 1 + k).
inline CodeWords code_words(const Grid& g, const uint64_t* voxels, int64_t a, int64_t b, int64_t w) {
  const uint64_t* rows[4];
  rows_around(g, voxels, a, b, rows);
  alignas(64) uint64_t lanes[8];
  for (int r = 0; r < 4; ++r) {
    const uint64_t at = rows[r][w], next = w + 1 < g.words ? rows[r][w + 1] : 0;
    lanes[7 - 2 * r] = at;
    lanes[6 - 2 * r] = at >> 1 | next << 63;
  }
  CodeWords out;
#if defined(TF_ISA_AVX512)
  out.words = _mm512_load_si512(lanes);
#elif defined(TF_ISA_AVX2)
  out.low = load256(lanes);
  out.high = load256(lanes + 4);
#else
  for (int i = 0; i < 8; ++i) out.words[i] = lanes[i];
#endif
  return out;
}

}  // namespace TF_NS
