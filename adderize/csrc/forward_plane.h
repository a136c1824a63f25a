// The forward pass over a plane of positions: maxima or distances, tile by tile.
#pragma once

#include "forward_band.h"

namespace adderize {
namespace {

// Where a tile of outputs lies, strides in floats; `channels` of them are stored.
struct Target {
  float *out;
  int64_t pixel, row, channels;
  const float *patch;
  int64_t patch_pixel, patch_row;
};

// Of a channel tile's filters in a region: the sums of magnitudes of the taps in the padding, and the sums of the others less those.
struct FilterSums {
  alignas(64) float unseen[tile_channels], constant[tile_channels];
};

template <int N>
void store_distances(const float *sums, int q_count, int r_count, const Target &to, const float *unseen) {
  for (int r = 0; r < r_count; ++r)
    for (int q = 0; q < q_count; ++q)
      for (int n = 0; n < N; ++n, sums += V)
        store(to.out + r * to.row + q * to.pixel + n * V, -(load(sums) + load(unseen + n * V)), n == N - 1 ? to.channels - n * V : V);
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
      const vec patch = all(to.patch[r * to.patch_row + q * to.patch_pixel]);
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

// One channel tile over a region, whose first position's first tap is at `at`.
template <int N>
void forward_plane(const ForwardPlan &p, Grid at, Target to, const Region &region, const float *w, const FilterSums &filters,
                   const Floor &floor, Upcoming &next) {
  alignas(64) float sums[2 * most_positions * N * V];
  bool exact = p.form == ADDERIZE_FORM_EXACT;
  const Grid origin = at;
  const Target first = to;
  const Cut &cut = region.cut;
  const int64_t rows = region.rows(), columns = region.columns();
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
        to.patch = first.patch + y * to.patch_row + x * to.patch_pixel;
        maxima_tiles[N - 1][r - 1][q](at, region.runs, w, sums);
        if (store_maxima<N>(sums, q, r, to, filters.constant, floor)) continue;
        exact = true;  // its neighbours of this region will most likely cancel too
      }
      distance_tiles[N - 1][r - 1][q](at, region.runs, w, sums);
      store_distances<N>(sums, q, r, to, filters.unseen);
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
  int64_t levels = 0;  // of the pairwise sums
  for (int64_t count = p.k; count > summed_in_a_row; count = ceil_div(count, 2)) ++levels;
  constexpr float rounding = 1.0f / (3 << 24);
  const float maxima = float(terms) * rounding;
  const float others = float(least(p.k, summed_in_a_row) + levels + p.s.kh + p.s.kw) * rounding;
  return {position * float(p.s.kh * p.s.kw), filter, (maxima + others) / (maxima < 9e-6f ? 1e-5f - maxima : 1e-6f)};
}

FilterSums filter_sums(const ForwardPlan &p, const Region &region, int64_t lane, int vectors) {
  FilterSums sums;
  const TapSpan &y = region.y, &x = region.x;
  const bool whole = y.taps == p.s.kh && x.taps == p.s.kw;
  for (int64_t v = 0; v < vectors * V; v += V) {
    vec seen = whole ? load(p.sums + lane + v) : vec{}, unseen = {};
    for (int64_t i = 0; !whole && i < p.s.kh; ++i) {
      vec seen_row = {}, unseen_row = {};
      for (int64_t j = 0; j < p.s.kw; ++j) {
        const int64_t at = (i * p.s.kw + j) * p.taps.lanes + lane + v;
        if (i >= y.tap && i < y.tap + y.taps && j >= x.tap && j < x.tap + x.taps)
          seen_row += load(p.taps.sums + at);
        else
          unseen_row += load(p.taps.magnitudes + at);
      }
      seen += seen_row;
      unseen += unseen_row;
    }
    store(sums.unseen + v, unseen);
    store(sums.constant + v, seen - unseen);
  }
  return sums;
}

Target target_of(const Region &region, const Target &to) {
  const int64_t y = region.y.first, x = region.x.first;
  float *out = to.out + y * to.row + x * to.pixel;
  const float *patch = to.patch + y * to.patch_row + x * to.patch_pixel;
  return region.upright ? Target{out, to.row, to.pixel, to.channels, patch, to.patch_row, to.patch_pixel}
                        : Target{out, to.pixel, to.row, to.channels, patch, to.patch_pixel, to.patch_row};
}

// A chunk of channel tiles over the regions of a plane; `at` and `to` belong to its first position.
void forward_tiles(const ForwardPlan &p, int64_t group, int64_t chunk, const Grid &at, Target to, const Region *regions, int count,
                   float position_magnitude, Upcoming &next) {
  float *out = to.out;
  for (int64_t tile = chunk * p.chunk; tile < least((chunk + 1) * p.chunk, p.tiles); ++tile) {
    const int64_t first = tile * tile_channels, lane = group * packed_channels(p.og) + first;
    const int vectors = vectors_of(p.og, tile);
    to.out = out + first;
    to.channels = least(p.og - first, tile_channels);
    const Floor floor = floor_of(p, position_magnitude, p.magnitudes + lane, to.channels);
    for (int i = 0; i < count; ++i) {
      const Region &region = regions[i];
      const float *w = p.packed + group * p.group_floats + first * p.k + region.filters * vectors * V;
      (vectors == 2 ? forward_plane<2> : forward_plane<1>)(p, grid_of(region, at), target_of(region, to), region, w,
                                                           filter_sums(p, region, lane, vectors), floor, next);
    }
  }
}

}  // namespace
}  // namespace adderize
