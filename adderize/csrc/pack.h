// Filters in the order in which the micro-kernels read them: [tile of channels][k][lanes].
#pragma once

#include "kernels.h"
#include "simd.h"

namespace adderize {
namespace {

// Two vectors of channels a tile; the last tile of a group may be one vector wide.
constexpr int64_t tile_channels = 2 * V;

ADDERIZE_INLINE int64_t tiles_of(int64_t channels) { return ceil_div(channels, tile_channels); }
ADDERIZE_INLINE int64_t packed_channels(int64_t channels) { return round_up(channels, V); }
ADDERIZE_INLINE int vectors_of(int64_t channels, int64_t tile) {
  return channels - tile * tile_channels > V ? 2 : 1;
}

#if defined(__GNUC__) && !defined(__clang__)
template <int S>
ADDERIZE_INLINE void swap_blocks(vec &a, vec &b) {
  ivec low, high;
  for (int i = 0; i < V; ++i) {
    low[i] = i & S ? V + (i ^ S) : i;
    high[i] = i & S ? V + i : i ^ S;
  }
  const vec x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
  a = x;
  b = y;
}
template <int S>
ADDERIZE_INLINE void swap_all(vec *v) {
#pragma GCC unroll 16
  for (int i = 0; i < V; ++i)
    if (!(i & S)) swap_blocks<S>(v[i], v[i + S]);
}
ADDERIZE_INLINE void transpose(vec *v) {
  swap_all<1>(v);
  swap_all<2>(v);
  if constexpr (V >= 8) swap_all<4>(v);
  if constexpr (V >= 16) swap_all<8>(v);
}
#else
ADDERIZE_INLINE void transpose(vec *v) {
  for (int i = 0; i < V; ++i)
    for (int j = 0; j < i; ++j) {
      const float x = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = x;
    }
}
#endif

// For j < count: row(j)[lane] = from[lane * lane_stride + j]. Lanes past `lanes` repeat the last one: their sums must look like
// any other's when a tile is checked for cancellation.
template <class Row>
ADDERIZE_INLINE void pack_lanes(const float *from, int64_t lane_stride, int64_t lanes, int64_t count, Row row) {
  for (int64_t j = 0; j < count; j += V) {
    const int64_t here = least(V, count - j);
    vec v[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; ++i) v[i] = load(from + least(i, lanes - 1) * lane_stride + j, here);
    transpose(v);
    if (here == V) {
#pragma GCC unroll 16
      for (int i = 0; i < V; ++i) store(row(j + i), v[i]);
    } else {
      for (int64_t i = 0; i < here; ++i) store(row(j + i), v[i]);
    }
  }
}

// Of `count` vectors, pairwise beyond a few: a long sum in one accumulator loses digits.
constexpr int64_t summed_in_a_row = 32;
Sums packed_sums(const float *p, int64_t count, int64_t step) {
  if (count > summed_in_a_row)
    return packed_sums(p, count / 2, step) + packed_sums(p + count / 2 * step, count - count / 2, step);
  Sums sums = {};
  for (int64_t i = 0; i < count; ++i) {
    const vec v = load(p + i * step);
    sums = sums + Sums{v, absolute(v)};
  }
  return sums;
}

// Sums of every tap's filters and of their magnitudes: [tap][lanes]; null where none are wanted.
struct TapSums {
  float *sums, *magnitudes;
  int64_t lanes;
};

// One vector of output channels [first, first + lanes): out[(y * kw + x) * cg + i][step], with the sum and the sum of magnitudes of all,
// and of every tap.
void pack_forward(const adderize_shape &s, const Filters &f, int64_t first, int64_t lanes, float *out, int64_t step, float *sums,
                  float *magnitudes, const TapSums &tap_sums) {
  const int64_t cg = s.c / s.groups, taps = s.kh * s.kw;
  const float *from = f.data + first * f.stride[0];
  if (f.stride[3] == 1 && f.stride[2] == s.kw && f.stride[1] == taps) {
    int64_t channel = 0, tap = 0;  // of the row that comes next
    pack_lanes(from, f.stride[0], lanes, cg * taps, [&](int64_t) {
      float *row = out + (tap * cg + channel) * step;
      if (++tap == taps) tap = 0, ++channel;
      return row;
    });
  } else {
    for (int64_t y = 0; y < s.kh; ++y)
      for (int64_t x = 0; x < s.kw; ++x) {
        const float *tap = from + y * f.stride[2] + x * f.stride[3];
        float *rows = out + (y * s.kw + x) * cg * step;
        if (f.stride[1] == 1) {
          pack_lanes(tap, f.stride[0], lanes, cg, [&](int64_t i) { return rows + i * step; });
        } else {
          for (int64_t i = 0; i < cg; ++i)
            for (int64_t lane = 0; lane < V; ++lane)
              rows[i * step + lane] = tap[i * f.stride[1] + least(lane, lanes - 1) * f.stride[0]];
        }
      }
  }
  const Sums total = packed_sums(out, cg * taps, step);
  store(sums, total.plain);
  store(magnitudes, total.magnitude);
  for (int64_t tap = 0; tap_sums.sums && tap < taps; ++tap) {
    const Sums of_tap = packed_sums(out + tap * cg * step, cg, step);
    store(tap_sums.sums + tap * tap_sums.lanes, of_tap.plain);
    store(tap_sums.magnitudes + tap * tap_sums.lanes, of_tap.magnitude);
  }
}

}  // namespace
}  // namespace adderize
