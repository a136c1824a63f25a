// Filters in the order in which the tiles of the forward pass read them, and their sums.
#pragma once

#include "kernels.h"
#include "runtime/bands.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

// Two vectors of channels a tile; the last tile of a group may be one vector wide.
constexpr int64_t tile_channels = 2 * V;
ADDERIZE_INLINE int vectors_of(int64_t channels, int64_t tile) { return channels - tile * tile_channels > V ? 2 : 1; }

// For j < count: row(j)[lane] = from[lane * lane_stride + j]. Lanes past `lanes` repeat the last one: their sums must look like
// any other's when a tile is checked for cancellation.
template <class Row>
ADDERIZE_INLINE void pack_lanes(const float *from, int64_t lane_stride, int64_t lanes, int64_t count, Row row) {
  for (int64_t j = 0; j < count; j += V) {
    const int64_t here = min(V, count - j);
    vec v[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; ++i) v[i] = load(from + min(i, lanes - 1) * lane_stride + j, here);
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
Sums vector_sums(const float *p, int64_t count, int64_t step) {
  if (count > summed_in_a_row) return vector_sums(p, count / 2, step) + vector_sums(p + count / 2 * step, count - count / 2, step);
  Sums sums = {};
  for (int64_t i = 0; i < count; ++i) sums = sums + sums_of(load(p + i * step));
  return sums;
}

struct LaneSums {
  float *plain, *magnitude;
  void put(int64_t at, const Sums &sums) const {
    store(plain + at, sums.plain);
    store(magnitude + at, sums.magnitude);
  }
};

// [group][tile of channels][k][lane], k = (y * kw + x) * cg + i; sums over k of every lane, and over i alone: [tap][lane].
struct PackedFilters {
  int64_t kh, kw, cg, og, k, group_lanes, group_floats, lanes;
  bool with_taps;
  float *data;
  LaneSums sums, taps;

  PackedFilters() = default;
  PackedFilters(const adderize_shape &s, bool with_tap_sums) : kh(s.kh), kw(s.kw), cg(s.c / s.groups), og(s.cout / s.groups) {
    k = kh * kw * cg;
    group_lanes = round_up(og, V);
    group_floats = group_lanes * k;
    lanes = s.groups * group_lanes;
    with_taps = with_tap_sums;
  }
  void take_from(Arena &arena) {
    const int64_t tap_sums = with_taps ? kh * kw * lanes : 0;
    arena.take(data, lanes * k);
    arena.take(sums.plain, lanes);
    arena.take(sums.magnitude, lanes);
    arena.take(taps.plain, tap_sums);
    arena.take(taps.magnitude, tap_sums);
  }
  const float *tile(int64_t group, int64_t index) const { return data + group * group_floats + index * tile_channels * k; }
};

// One vector of output channels: its taps `step` floats apart.
void pack_taps(const PackedFilters &p, const Filters &f, int64_t first, int64_t lanes, float *out, int64_t step) {
  const float *from = f.data + first * f.stride[0];
  const int64_t taps = p.kh * p.kw;
  if (f.stride[3] == 1 && f.stride[2] == p.kw && f.stride[1] == taps) {
    int64_t channel = 0, tap = 0;  // of the row that comes next
    pack_lanes(from, f.stride[0], lanes, p.k, [&](int64_t) {
      float *row = out + (tap * p.cg + channel) * step;
      if (++tap == taps) tap = 0, ++channel;
      return row;
    });
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap, out += p.cg * step) {
    const float *at = from + (f.tap(tap / p.kw, tap % p.kw) - f.data);
    if (f.stride[1] == 1) {
      pack_lanes(at, f.stride[0], lanes, p.cg, [&](int64_t i) { return out + i * step; });
    } else {
      for (int64_t i = 0; i < p.cg; ++i)
        for (int64_t lane = 0; lane < V; ++lane) out[i * step + lane] = at[i * f.stride[1] + min(lane, lanes - 1) * f.stride[0]];
    }
  }
}

void pack_filters(const PackedFilters &p, const Filters &filters, int threads) {
  parallel(p.lanes / V, threads, [&](int64_t task, int) {
    const int64_t lane = task * V, group = lane / p.group_lanes, first = lane % p.group_lanes, tile = first / tile_channels;
    const int64_t step = vectors_of(p.og, tile) * V;
    float *out = p.data + group * p.group_floats + tile * tile_channels * p.k + first % tile_channels;
    pack_taps(p, filters, group * p.og + first, min(V, p.og - first), out, step);
    p.sums.put(lane, vector_sums(out, p.k, step));
    for (int64_t tap = 0; p.with_taps && tap < p.kh * p.kw; ++tap)
      p.taps.put(tap * p.lanes + lane, vector_sums(out + tap * p.cg * step, p.cg, step));
  });
}

}}  // namespace adderize
