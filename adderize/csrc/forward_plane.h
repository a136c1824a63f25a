// The forward pass over a plane of positions: maxima or distances, tile by tile.
#pragma once

#include "forward_band.h"
#include "pack.h"

namespace adderize {
namespace {

// Where a tile of outputs lies.
struct Target {
  float *out;
  int64_t pixel, row, channels;  // strides of the output in floats; channels to store
  const float *patch;
  int64_t patch_row;
};

template <int N>
void store_distances(const float *sums, int q_count, int r_count, const Target &to) {
  for (int r = 0; r < r_count; ++r)
    for (int q = 0; q < q_count; ++q)
      for (int n = 0; n < N; ++n, sums += V)
        store(to.out + r * to.row + q * to.pixel + n * V, -load(sums), n == N - 1 ? to.channels - n * V : V);
}

// The largest |Y| of a tile must reach `share` of the largest sums of magnitudes of a patch and of a filter. `patch` is 0 where no
// input is negative: then the patch sums are the magnitudes.
struct Floor {
  float patch, filter, share;
};

// Y = patch sum + filter sum - 2 * maxima. False where |Y| of the whole tile is below its floor, or one is not finite.
template <int N>
bool store_maxima(const float *sums, int q_count, int r_count, const Target &to, const float *filter_sums, const Floor &floor) {
  vec low = {}, trouble = {}, largest = all(floor.patch);
  for (int r = 0; r < r_count; ++r)
    for (int q = 0; q < q_count; ++q) {
      const vec patch = all(to.patch[r * to.patch_row + q]);
      largest = maximum(largest, patch);
      for (int n = 0; n < N; ++n, sums += V) {
        vec y = load(sums);
        y = (patch - y) + (load(filter_sums + n * V) - y);
        trouble += y - y;
        low = minimum(low, y);
        store(to.out + r * to.row + q * to.pixel + n * V, y, n == N - 1 ? to.channels - n * V : V);
      }
    }
  return total(trouble) == 0 && lowest(low) <= -(largest[0] + floor.filter) * floor.share;
}

// One channel tile over a plane of rows x columns positions.
template <int N>
void forward_plane(const ForwardPlan &p, Grid at, Target to, int64_t rows, int64_t columns, const Cut &cut, const float *w,
                   const float *filter_sums, const Floor &floor, Upcoming &next) {
  alignas(64) float sums[2 * most_positions * N * V];
  bool exact = p.form == ADDERIZE_FORM_EXACT;
  const Grid origin = at;
  const Target first = to;
  for (int64_t y = 0; y < rows;) {
    const int r = int(least(cut.rows, rows - y));
    for (int64_t i = 0; i < cut.columns; ++i) {
      const int64_t x = i * columns / cut.columns;
      const int q = int((i + 1) * columns / cut.columns - x);
      at.base = origin.base + y * at.row + x * at.pixel;
      to.out = first.out + y * to.row + x * to.pixel;
      prefetch<N>(to.out, to.pixel, to.row, q, r);
      next.fetch();
      if (!exact) {
        to.patch = first.patch + y * to.patch_row + x;
        maxima_tiles[N - 1][r - 1][q](at, p.runs, w, sums);
        if (store_maxima<N>(sums, q, r, to, filter_sums, floor)) continue;
        exact = true;  // its neighbours of this plane will most likely cancel too
      }
      distance_tiles[N - 1][r - 1][q](at, p.runs, w, sums);
      store_distances<N>(sums, q, r, to);
    }
    y += r;
  }
}

// Rounding moves a sum of n numbers by up to n / 3 * 2^-24 of their magnitudes: in flat regions every addition errs the same way.
// With A = sum |x| + sum |w|, the maxima's error is that share of A + |Y|, and the channel, patch and filter sums' of A. Where |Y|
// reaches the floor, both stay below 1e-5 of it.
Floor floor_of(const ForwardPlan &p, float position, const float *magnitudes, int64_t lanes) {
  if (p.form == ADDERIZE_FORM_FAST) return {0, 0, 0};
  float filter = 0;
  for (int64_t i = 0; i < lanes; ++i) filter = magnitudes[i] > filter ? magnitudes[i] : filter;
  const int64_t parts = ceil_div(p.k, flush_every);
  const int64_t terms = least(p.k, flush_every) + least(parts, carry_every) + parts / carry_every;
  constexpr float rounding = 1.0f / (3 << 24);
  const float maxima = float(terms) * rounding, others = float(least(p.k, 32) + p.s.kh + p.s.kw) * rounding;
  return {position * float(p.s.kh * p.s.kw), filter, (maxima + others) / (maxima < 9e-6f ? 1e-5f - maxima : 1e-6f)};
}

void forward_tiles(const ForwardPlan &p, int64_t group, int64_t chunk, Grid at, Target to, int64_t rows, int64_t columns,
                   const Cut &cut, float position_magnitude, Upcoming &next) {
  float *out = to.out;
  for (int64_t tile = chunk * p.chunk; tile < least((chunk + 1) * p.chunk, p.tiles); ++tile) {
    const int64_t first = tile * tile_channels;
    const int64_t lane = group * packed_channels(p.og) + first;
    const float *w = p.packed + group * p.group_floats + first * p.k;
    to.out = out + first;
    to.channels = least(p.og - first, tile_channels);
    const Floor floor = floor_of(p, position_magnitude, p.magnitudes + lane, to.channels);
    if (vectors_of(p.og, tile) == 2)
      forward_plane<2>(p, at, to, rows, columns, cut, w, p.sums + lane, floor, next);
    else
      forward_plane<1>(p, at, to, rows, columns, cut, w, p.sums + lane, floor, next);
  }
}

}  // namespace
}  // namespace adderize
