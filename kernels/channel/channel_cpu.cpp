// The superposition channel on the CPU: gains, allocation, sum over users, noise and receive scale of a few rows at a time, in the cache.
// Rows are allocated by the kernel of kernels/power; the order of operations is that of channel_reference.py, to the bit.
#include "channel_api.hpp"

#include "../core/pages.hpp"
#include "../core/parallel.hpp"
#include "../core/philox.hpp"
#include "../core/room.hpp"
#include "../core/simd.hpp"

namespace TF_NS {

using namespace tenfold;

void zo_draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* z);  // zo_generate.hpp
extern const tenfold::PowerKernels power_kernels;

namespace {

constexpr uint32_t kFadingStream = 0, kNoiseStream = 1;
constexpr int kJoint = 1;
constexpr int64_t kDrawn = 2048;   // normals at a time: as in kernels/zo, whose pieces start at its multiples
constexpr int64_t kTogether = 16;  // rows

template <class T>
T one(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const T*>(view.data)[row * view.row + user * view.user];
}

// Visits normals first, first + 1, ..., first + n - 1 as visit(z, index of z[0] among them, count).
template <class Visit>
void each_drawn(const Sequence& s, uint64_t first, int64_t n, const Visit& visit) {
  alignas(64) float z[kDrawn];
  for (int64_t done = 0; done < n;) {
    const uint64_t at = first + static_cast<uint64_t>(done), start = at & ~uint64_t{63};
    const int64_t skip = static_cast<int64_t>(at - start), room = kDrawn - static_cast<int64_t>(start % kDrawn);
    const int64_t count = n - done < room - skip ? n - done : room - skip;
    zo_draw(s, kGaussian, start, skip + count, z);
    visit(z + skip, done, count);
    done += count;
  }
}

// Interleaved parts of one user's gains in one row.
template <class T>
void draw_gains(const ChannelArgs& a, int64_t row, int64_t user, T* out) {
  const int64_t carriers = a.shape.carriers, faded = (a.first + row) / a.block;
  const Sequence s = make_sequence(a.seed, kFadingStream, kGaussian, a.offset);
  const T scale = one<T>(a.scale, row, user), mean = one<T>(a.mean, row, user);
  each_drawn(s, 2 * static_cast<uint64_t>((faded * a.shape.users + user) * carriers), 2 * carriers,
             [&](const float* z, int64_t at, int64_t n) {
               for (int64_t i = 0; i < n; i += 2) {  // pieces start and end at whole samples
                 out[at + i] = static_cast<T>(z[i]) * scale + mean;
                 out[at + i + 1] = static_cast<T>(z[i + 1]) * scale;
               }
             });
}

// Interleaved parts of one row and user of a view.
template <class T>
const T* row_of(const PowerView& view, int64_t row, int64_t user, int64_t carriers, T* copy) {
  const T* const from = static_cast<const T*>(view.data) + 2 * (row * view.row + user * view.user);
  if (view.carrier == 1) return from;
  for (int64_t k = 0; k < carriers; ++k) {
    copy[2 * k] = from[2 * k * view.carrier];
    copy[2 * k + 1] = from[2 * k * view.carrier + 1];
  }
  return copy;
}

template <class T>
void add_products(const T* __restrict g, const T* __restrict u, int64_t carriers, T* __restrict sum) {
  // Two loops: of one, GCC 12 makes vfmaddsub231 where FMA is on, also under -ffp-contract=off, and a product is then not rounded.
  for (int64_t k = 0; k < carriers; ++k) sum[2 * k] += g[2 * k] * u[2 * k] - g[2 * k + 1] * u[2 * k + 1];
  for (int64_t k = 0; k < carriers; ++k) sum[2 * k + 1] += g[2 * k] * u[2 * k + 1] + g[2 * k + 1] * u[2 * k];
}

template <class T>
struct Rooms {
  Room<T> gains, sent, symbols, copy, rest;
  Room<int32_t> steps;
};

// s = sum_n sqrt(rho_n) t_n
template <class T>
void wanted(const ChannelArgs& a, int64_t row, T* copy, T* s) {
  const int64_t width = 2 * a.shape.carriers;
  for (int64_t k = 0; k < width; ++k) s[k] = T(0);
  for (int64_t n = 0; n < a.shape.users; ++n) {
    const T c = sqrt(one<T>(a.rho, row, n));
    const T* const t = row_of<T>(a.transmit, row, n, a.shape.carriers, copy);
    for (int64_t k = 0; k < width; ++k) s[k] += c * t[k];
  }
}

// Rows [row, row + rows): what is sent, alpha and mu, through the kernel of power allocation.
template <class T>
void allocate(const ChannelArgs& a, int64_t row, int64_t rows, Rooms<T>& r, T* gains, T* sent) {
  const int64_t users = a.shape.users, carriers = a.shape.carriers;
  T* const s = r.symbols.take(kTogether * 2 * carriers);
  T* const copy = r.copy.take(2 * carriers);
  for (int64_t i = 0; i < rows; ++i) wanted<T>(a, row + i, copy, s + i * 2 * carriers);
  const auto shifted = [row](PowerView view) {
    view.data = static_cast<const T*>(view.data) + row * view.row;
    return view;
  };
  const JointArgs j = {{rows, users, carriers, a.shape.dtype},
                       {gains, users * carriers, carriers, 1},
                       {s, carriers, 0, 1},
                       shifted(a.power),
                       shifted(a.noise),
                       {nullptr, 0, 0, 0},
                       a.tolerance,
                       a.most,
                       sent,
                       static_cast<T*>(a.found) + row,
                       static_cast<T*>(a.dual) + row * users,
                       r.rest.take(kTogether),
                       r.steps.take(kTogether),
                       1};
  power_kernels.joint(j);
}

template <class T>
void rows_together(const ChannelArgs& a, int64_t row, int64_t rows, Rooms<T>& r) {
  const int64_t users = a.shape.users, carriers = a.shape.carriers, width = 2 * carriers;
  T* const gains = r.gains.take(kTogether * users * width);
  T* const copy = r.copy.take(width);
  T* const sent = a.allocate == kJoint ? r.sent.take(kTogether * users * width) : nullptr;
  for (int64_t i = 0; i < rows * users; ++i) {
    T* const to = gains + i * width;
    if (a.gains.data == nullptr) {
      draw_gains<T>(a, row + i / users, i % users, to);
    } else {
      const T* const from = row_of<T>(a.gains, row + i / users, i % users, carriers, to);
      for (int64_t k = 0; from != to && k < width; ++k) to[k] = from[k];
    }
  }
  if (sent != nullptr) allocate<T>(a, row, rows, r, gains, sent);
  const Sequence noise = make_sequence(a.seed, kNoiseStream, kGaussian, a.offset);
  for (int64_t i = 0; i < rows; ++i) {
    T* const y = static_cast<T*>(a.received) + (row + i) * width;
    for (int64_t k = 0; k < width; ++k) y[k] = T(0);
    for (int64_t n = 0; n < users; ++n) {
      const T* const u = sent != nullptr ? sent + (i * users + n) * width : row_of<T>(a.transmit, row + i, n, carriers, copy);
      add_products(gains + (i * users + n) * width, u, carriers, y);
    }
    const T size = sqrt(one<T>(a.noise, row + i, 0) * T(0.5));
    const bool scaled = sent != nullptr || a.alpha.data != nullptr;
    const T alpha = sent != nullptr ? static_cast<const T*>(a.found)[row + i] : scaled ? one<T>(a.alpha, row + i, 0) : T(1);
    each_drawn(noise, static_cast<uint64_t>((a.first + row + i) * width), width, [&](const float* z, int64_t at, int64_t n) {
      for (int64_t k = 0; k < n; ++k) y[at + k] = (y[at + k] + static_cast<T>(z[k]) * size) * alpha;
    });
  }
}

template <class T>
void channel_rows(const ChannelArgs& a) {
  ask_for_large_pages(a.received, 2 * a.shape.rows * a.shape.carriers * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        Rooms<T> rooms;
        for (int64_t row = first; row < last; row += kTogether) {
          rows_together<T>(a, row, last - row < kTogether ? last - row : kTogether, rooms);
        }
      },
      kTogether);
}

void channel(const ChannelArgs& a) { a.shape.dtype == 1 ? channel_rows<double>(a) : channel_rows<float>(a); }

}  // namespace

extern const tenfold::ChannelKernels channel_kernels;
const tenfold::ChannelKernels channel_kernels = {channel};

}  // namespace TF_NS
