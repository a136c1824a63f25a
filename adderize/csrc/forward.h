// The forward pass of layers with enough channels in a group to fill vectors.
#pragma once

#include "band.h"
#include "pack.h"
#include "tiles.h"

namespace adderize {
namespace {

// A task: an image of a group, a band of output rows, a chunk of channel tiles.
struct ForwardPlan {
  adderize_shape s;
  const float *input;
  float *output;
  Filters filters;
  int form;
  int64_t cg, og, k, tiles, group_floats;
  bool flat;      // 1x1, unit stride, no padding: positions of all images form one row, read in place
  bool in_place;  // 1x1 of another stride: nothing is copied either
  int64_t band_rows, bands, chunk, chunks, band_columns, buffer_floats;
  bool shared;  // every band is copied once for all chunks
  Cut cut;
  Runs runs;
  float *packed, *sums, *magnitudes, *buffers;
  int64_t *offsets;
};

// Scratch of one band: the copy, the channel sums of its positions, the patch sums of its outputs.
// The sums are read and written by whole vectors, a vector past their ends.
struct BandView {
  float *copy, *channel, *patch, *magnitude;
};

int64_t band_positions(const ForwardPlan &p, int64_t band_rows) {
  if (p.flat || p.in_place) return band_rows * p.band_columns;
  return ((band_rows - 1) * p.s.stride_h + (p.s.kh - 1) * p.s.dilation_h + 1) * p.band_columns;
}

BandView band_view(const ForwardPlan &p, int64_t index) {
  BandView view;
  view.magnitude = p.buffers + index * p.buffer_floats;
  view.channel = view.magnitude + V;
  view.patch = view.channel + round_up(band_positions(p, p.band_rows), V) + round_up(p.band_columns, V) + 3 * V;
  view.copy = view.patch + round_up(p.band_rows * p.s.ow, V) + V;
  return view;
}

int64_t band_view_floats(const ForwardPlan &p, int64_t band_rows) {
  const int64_t positions = band_positions(p, band_rows);
  const int64_t sums = round_up(positions, V) + round_up(p.band_columns, V) + 5 * V + round_up(band_rows * p.s.ow, V);
  return round_up(sums + (p.flat || p.in_place ? 0 : positions * p.cg), 16);
}

// patch[y][x] = sum over taps of channel[...]: down the columns first, then along the row.
void patch_sums(const ForwardPlan &p, const BandView &view, int64_t rows_out) {
  const adderize_shape &s = p.s;
  float *column = view.channel + round_up(((p.band_rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1) * p.band_columns, V) + V;
  for (int64_t y = 0; y < rows_out; ++y) {
    const float *from = view.channel + y * s.stride_h * p.band_columns;
    for (int64_t x = 0; x < p.band_columns; x += V) {
      vec sum = load(from + x);
      for (int64_t t = 1; t < s.kh; ++t) sum += load(from + x + t * s.dilation_h * p.band_columns);
      store(column + x, sum);
    }
    float *to = view.patch + y * s.ow;
    if (s.stride_w == 1) {
      for (int64_t x = 0; x < s.ow; x += V) {
        vec sum = load(column + x);
        for (int64_t t = 1; t < s.kw; ++t) sum += load(column + x + t * s.dilation_w);
        store(to + x, sum);
      }
    } else {
      for (int64_t x = 0; x < s.ow; ++x) {
        float sum = 0;
        for (int64_t t = 0; t < s.kw; ++t) sum += column[x * s.stride_w + t * s.dilation_w];
        to[x] = sum;
      }
    }
  }
}

int64_t rows_of_band(const ForwardPlan &p, int64_t band) { return least(p.band_rows, p.s.oh - band * p.band_rows); }

// The first input of a band that is read in place.
Grid band_in_place(const ForwardPlan &p, int64_t n, int64_t group, int64_t band) {
  const adderize_shape &s = p.s;
  const int64_t row = s.stride_h * s.w * s.c;
  return {p.input + n * s.h * s.w * s.c + band * p.band_rows * row + group * p.cg, s.stride_w * s.c, row};
}

void fill_band(const ForwardPlan &p, int64_t n, int64_t group, int64_t band, const BandView &view) {
  const adderize_shape &s = p.s;
  const int64_t rows_out = rows_of_band(p, band);
  *view.magnitude = 0;
  if (p.flat) {
    if (p.form == ADDERIZE_FORM_EXACT) return;
    const int64_t first = band * p.band_columns, columns = least(p.band_columns, s.ow - first);
    *view.magnitude = channel_sums(p.input + first * s.c + group * p.cg, columns, s.c, p.cg, view.channel);
    return;
  }
  if (p.in_place) {
    const Grid at = band_in_place(p, n, group, band);
    for (int64_t y = 0; y < rows_out && p.form != ADDERIZE_FORM_EXACT; ++y) {
      const float size = channel_sums(at.base + y * at.row, s.ow, at.pixel, p.cg, view.patch + y * s.ow);
      *view.magnitude = size > *view.magnitude ? size : *view.magnitude;
    }
    return;
  }
  const Image image = {p.input + n * s.h * s.w * s.c + group * p.cg, s.h, s.w, p.cg, s.c};
  const Window window = {band * p.band_rows * s.stride_h - s.padding_h, (rows_out - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1,
                         -s.padding_w, p.band_columns};
  copy_window(image, window, view.copy);
  if (p.form == ADDERIZE_FORM_EXACT) return;
  *view.magnitude = channel_sums(view.copy, window.rows * window.columns, p.cg, p.cg, view.channel);
  patch_sums(p, view, rows_out);
}

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
                   const float *filter_sums, const Floor &floor) {
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
                   const Cut &cut, float position_magnitude) {
  float *out = to.out;
  for (int64_t tile = chunk * p.chunk; tile < least((chunk + 1) * p.chunk, p.tiles); ++tile) {
    const int64_t first = tile * tile_channels;
    const int64_t lane = group * packed_channels(p.og) + first;
    const float *w = p.packed + group * p.group_floats + first * p.k;
    to.out = out + first;
    to.channels = least(p.og - first, tile_channels);
    const Floor floor = floor_of(p, position_magnitude, p.magnitudes + lane, to.channels);
    if (vectors_of(p.og, tile) == 2)
      forward_plane<2>(p, at, to, rows, columns, cut, w, p.sums + lane, floor);
    else
      forward_plane<1>(p, at, to, rows, columns, cut, w, p.sums + lane, floor);
  }
}

void forward_task(const void *context, int64_t task, int worker) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task % s.n, band = task / s.n % p.bands, chunk = task / (s.n * p.bands) % p.chunks,
                group = task / (s.n * p.bands * p.chunks);
  const int64_t rows = rows_of_band(p, band);
  const BandView view = band_view(p, p.shared ? (group * s.n + n) * p.bands + band : worker);
  if (!p.shared) fill_band(p, n, group, band, view);
  const Grid at = p.in_place ? band_in_place(p, n, group, band)
                             : Grid{view.copy, s.stride_w * p.cg, s.stride_h * p.band_columns * p.cg};
  float *out = p.output + ((n * s.oh + band * p.band_rows) * s.ow) * s.cout + group * p.og;
  forward_tiles(p, group, chunk, at, {out, s.cout, s.ow * s.cout, 0, view.patch, s.ow}, rows, s.ow, p.cut, *view.magnitude);
}

void forward_flat_task(const void *context, int64_t task, int worker) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t band = task % p.bands, chunk = task / p.bands % p.chunks, group = task / (p.bands * p.chunks);
  const int64_t first = band * p.band_columns, columns = least(p.band_columns, s.ow - first);
  const BandView view = band_view(p, p.shared ? group * p.bands + band : worker);
  const float *x = p.input + first * s.c + group * p.cg;
  if (!p.shared) fill_band(p, 0, group, band, view);
  const int widest = sum_widest[p.og > V];
  forward_tiles(p, group, chunk, {x, s.c, 0}, {p.output + first * s.cout + group * p.og, s.cout, 0, 0, view.channel, 0}, 1, columns,
                {ceil_div(columns, widest), 1}, *view.magnitude);
}

void pack_forward_task(const void *context, int64_t task, int) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const int64_t vectors = packed_channels(p.og) / V, group = task / vectors, vector = task % vectors;
  const int64_t tile = vector / 2, first = vector * V, lane = group * vectors * V + first;
  pack_forward(p.s, p.filters, group * p.og + first, least(V, p.og - first),
               p.packed + group * p.group_floats + tile * tile_channels * p.k + vector % 2 * V, vectors_of(p.og, tile) * V,
               p.sums + lane, p.magnitudes + lane);
}

void fill_band_task(const void *context, int64_t task, int) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const int64_t band = task % p.bands, n = task / p.bands % p.s.n, group = task / (p.bands * p.s.n);
  fill_band(p, n, group, band, band_view(p, task));
}

// Decides bands and chunks from the shape alone: the result must not depend on the number of threads.
void divide(ForwardPlan &p) {
  const adderize_shape &s = p.s;
  const int64_t images = s.n * s.groups;
  if (p.flat) {
    p.band_rows = 1;
    p.band_columns = least(flat_positions, round_up(ceil_div(s.ow, 4), sum_widest[p.og > V]));
    p.bands = ceil_div(s.ow, p.band_columns);
  } else {
    p.band_columns = p.in_place ? s.ow : (s.ow - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
    p.band_rows = s.oh;
    while (p.band_rows > 1 && band_view_floats(p, p.band_rows) + (p.in_place ? p.band_rows * s.ow * p.cg : 0) > band_floats)
      --p.band_rows;
    p.bands = ceil_div(s.oh, p.band_rows);
    if (images * p.bands * p.tiles < wanted_tasks)  // few channels: shorter bands, down to four rows
      p.bands = most(p.bands, least(ceil_div(wanted_tasks, images * p.tiles), ceil_div(s.oh, 4)));
    p.band_rows = ceil_div(s.oh, p.bands);
    p.bands = ceil_div(s.oh, p.band_rows);
  }
  p.chunks = least(p.tiles, ceil_div(wanted_tasks, images * p.bands));
  p.chunk = ceil_div(p.tiles, p.chunks);
  p.chunks = ceil_div(p.tiles, p.chunk);
  p.shared = p.chunks > 1;
  p.buffer_floats = band_view_floats(p, p.band_rows);
}

// A kernel that covers the whole image, or a 1x1 kernel of unit stride, sees every position as one row of `c` channels.
bool flatten(adderize_shape &s) {
  const bool plain = s.padding_h == 0 && s.padding_w == 0;
  const bool point = plain && s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1;
  const bool whole = plain && s.groups == 1 && s.kh == s.h && s.kw == s.w && s.dilation_h == 1 && s.dilation_w == 1;
  if (!point && !whole) return false;
  const int64_t positions = s.n * s.oh * s.ow;
  s.c *= s.kh * s.kw;
  s.n = s.h = s.oh = s.kh = s.kw = 1;
  s.w = s.ow = positions;
  return true;
}

int forward_wide(const adderize_shape &shape, const float *input, const Filters &filters, float *output, int form, int threads) {
  ForwardPlan p = {};
  p.s = shape;
  p.input = input;
  p.output = output;
  p.filters = filters;
  p.form = form;
  const int64_t taps = shape.kh * shape.kw;
  p.flat = flatten(p.s);
  p.in_place = !p.flat && taps == 1 && shape.padding_h == 0 && shape.padding_w == 0;
  p.cg = p.s.c / p.s.groups;
  p.og = p.s.cout / p.s.groups;
  p.k = shape.c / shape.groups * taps;
  p.tiles = tiles_of(p.og);
  p.group_floats = packed_channels(p.og) * p.k;
  divide(p);
  p.cut = cut(p.s.ow, p.band_rows, sum_widest[p.og > V]);

  const int64_t buffers = p.shared ? p.s.n * p.s.groups * p.bands : threads;
  const int64_t lanes = p.s.groups * packed_channels(p.og), offset_floats = round_up(2 * taps, 16);
  float *memory = scratch(p.s.groups * p.group_floats + 2 * lanes + offset_floats + buffers * p.buffer_floats + 64);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.packed = memory;
  p.offsets = reinterpret_cast<int64_t *>(p.packed + round_up(p.s.groups * p.group_floats, 16));
  p.sums = p.packed + round_up(p.s.groups * p.group_floats, 16) + offset_floats;
  p.magnitudes = p.sums + lanes;
  p.buffers = p.packed + round_up(p.magnitudes + lanes - p.packed, 16);

  const bool joined = p.s.dilation_w == 1 || p.s.kw == 1;
  if (p.flat || p.in_place) {
    p.offsets[0] = 0;
    p.runs = {1, p.k, p.offsets};
  } else {
    p.runs = {p.s.kh * (joined ? 1 : p.s.kw), joined ? p.s.kw * p.cg : p.cg, p.offsets};
    for (int64_t i = 0; i < p.runs.count; ++i) {
      const int64_t y = joined ? i : i / p.s.kw, x = joined ? 0 : i % p.s.kw;
      p.offsets[i] = (y * p.s.dilation_h * p.band_columns + x * p.s.dilation_w) * p.cg;
    }
  }
  // The filters are packed by the shape they have, not by the flattened one.
  ForwardPlan packing = p;
  packing.s = shape;
  parallel(p.s.groups * packed_channels(p.og) / V, threads, &packing, pack_forward_task);
  if (p.shared) parallel(buffers, threads, &p, fill_band_task);
  const int64_t tasks = p.bands * p.chunks * p.s.groups * (p.flat ? 1 : p.s.n);
  parallel(tasks, threads, &p, p.flat ? forward_flat_task : forward_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
