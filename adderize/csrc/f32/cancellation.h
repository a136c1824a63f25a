// From a tile's sums to its outputs. Y = patch sum + filter sum - 2 * maxima loses digits where |Y| is small beside them: such a
// tile is found here, and summed again as it stands.
#pragma once

#include "f32/pack.h"
#include "f32/regions.h"

namespace adderize { namespace {

// Where a tile of outputs lies, strides in floats; `channels` of them are stored.
struct Target {
  float *out;
  int64_t pixel, row, channels;
  const float *patch;
  int64_t patch_pixel, patch_row;

  // Of vector n of N.
  ADDERIZE_INLINE float *place(int q, int r, int n) const { return out + r * row + q * pixel + n * V; }
  ADDERIZE_INLINE int64_t lanes(int n, int N) const { return n == N - 1 ? channels - n * V : V; }
  Target at(int64_t x, int64_t y) const {
    return {out + y * row + x * pixel, pixel, row, channels, patch + y * patch_row + x * patch_pixel, patch_pixel, patch_row};
  }
  // The same with a region's own directions.
  Target of(const Region &region) const {
    const Target first = at(region.x.positions.first, region.y.positions.first);
    return region.upright ? Target{first.out, row, pixel, channels, first.patch, patch_row, patch_pixel} : first;
  }
};

// Of a channel tile's filters in a region: sums of magnitudes of the taps in the padding, and sums of the others less those.
struct FilterSums {
  alignas(64) float unseen[tile_channels], constant[tile_channels];
};

FilterSums filter_sums(const PackedFilters &p, const Region &region, int64_t lane, int vectors) {
  FilterSums sums;
  const Span &ys = region.y.taps, &xs = region.x.taps;
  const bool whole = !p.with_taps || (ys.count() == p.kh && xs.count() == p.kw);
  for (int64_t v = 0; v < vectors * V; v += V) {
    vec seen = whole ? load(p.sums.plain + lane + v) : vec{}, unseen = {};
    for (int64_t y = 0; !whole && y < p.kh; ++y) {
      vec seen_row = {}, unseen_row = {};
      for (int64_t x = 0; x < p.kw; ++x) {
        const int64_t at = (y * p.kw + x) * p.lanes + lane + v;
        if (y >= ys.first && y < ys.last && x >= xs.first && x < xs.last)
          seen_row += load(p.taps.plain + at);
        else
          unseen_row += load(p.taps.magnitude + at);
      }
      seen += seen_row;
      unseen += unseen_row;
    }
    store(sums.unseen + v, unseen);
    store(sums.constant + v, seen - unseen);
  }
  return sums;
}

// The largest |Y| of a tile must reach `share` of the largest sums of magnitudes of a patch and of a filter. `patch` is 0 where no
// input is negative: then the patch sums are the magnitudes.
struct Floor {
  float patch, filter, share;
};

// Rounding moves a sum of n numbers by up to n / 3 * 2^-24 of their magnitudes: in flat regions every addition errs the same way.
// With A = sum |x| + sum |w|, the maxima's error is that share of A + |Y|, and the channel, patch and filter sums' of A. Where |Y|
// reaches the floor, both stay below 1e-5 of it. `position` is the largest sum of magnitudes of an input position.
Floor floor_of(const PackedFilters &p, const adderize_shape &s, float position, const float *magnitudes, int64_t lanes) {
  float filter = 0;
  for (int64_t i = 0; i < lanes; ++i) filter = magnitudes[i] > filter ? magnitudes[i] : filter;
  const int64_t parts = ceil_div(p.k, flush_every);
  const int64_t terms = min(p.k, flush_every) + min(parts, carry_every) + parts / carry_every;
  int64_t levels = 0;  // of the pairwise sums
  for (int64_t count = p.k; count > summed_in_a_row; count = ceil_div(count, 2)) ++levels;
  constexpr float rounding = 1.0f / (3 << 24);
  const float maxima = float(terms) * rounding;
  const float others = float(min(p.k, summed_in_a_row) + levels + s.kh + s.kw) * rounding;
  return {position * float(s.kh * s.kw), filter, (maxima + others) / (maxima < 9e-6f ? 1e-5f - maxima : 1e-6f)};
}

// False where |Y| of the whole tile is below its floor, or one is not finite.
template <int N>
bool store_maxima(const float *sums, int q_count, int r_count, const Target &to, const float *constant, const Floor &floor) {
  vec low = {}, trouble = {}, largest = all(floor.patch);
  for (int r = 0; r < r_count; ++r)
    for (int q = 0; q < q_count; ++q) {
      const vec patch = all(to.patch[r * to.patch_row + q * to.patch_pixel]);
      largest = maximum(largest, patch);
      for (int n = 0; n < N; ++n, sums += V) {
        vec y = load(sums);
        y = (patch - y) + (load(constant + n * V) - y);
        trouble += y - y;
        low = minimum(low, y);
        store(to.place(q, r, n), y, to.lanes(n, N));
      }
    }
  return total(trouble) == 0 && lowest(low) <= -(largest[0] + floor.filter) * floor.share;
}

template <int N>
void store_distances(const float *sums, int q_count, int r_count, const Target &to, const float *unseen) {
  for (int r = 0; r < r_count; ++r)
    for (int q = 0; q < q_count; ++q)
      for (int n = 0; n < N; ++n, sums += V) store(to.place(q, r, n), -(load(sums) + load(unseen + n * V)), to.lanes(n, N));
}

}}  // namespace adderize
