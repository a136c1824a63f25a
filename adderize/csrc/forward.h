// The forward pass of layers with enough channels in a group to fill vectors.
#pragma once

#include "forward_plane.h"

namespace adderize {
namespace {

// A task: a band of an image, a chunk of a group's channel tiles. All bands of a chunk come first, they share its filters.
struct ForwardTask {
  int64_t n, band, chunk, group;
};
ForwardTask forward_task_of(const ForwardPlan &p, int64_t task) {
  const int64_t images = p.flat ? 1 : p.s.n, pieces = images * p.bands;
  return {task % images, task / images % p.bands, task / pieces % p.chunks, task / (pieces * p.chunks)};
}

BandView shared_band(const ForwardPlan &p, const ForwardTask &task) {
  return band_view(p, (task.group * p.s.n + task.n) * p.bands + task.band);
}

// Of a band's plane: what its positions see of the band's copy, or of the input where nothing is copied.
int band_regions(const ForwardPlan &p, int64_t band, const Grid &at, Region *regions) {
  const adderize_shape &s = p.s;
  const TapAxis vertical = {band * p.band_rows * s.stride_h - s.padding_h, s.stride_h, s.kh, s.dilation_h, s.h};
  const TapAxis horizontal = {-s.padding_w, s.stride_w, s.kw, s.dilation_w, s.w};
  const Reading read = {at.pixel / s.stride_w, at.row / s.stride_h, p.cg};
  return regions_of(vertical, horizontal, rows_of_band(p, band), s.ow, read, sum_widest[p.og > V], regions);
}

void forward_task(const void *context, int64_t task, int worker) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const adderize_shape &s = p.s;
  const ForwardTask here = forward_task_of(p, task);
  const BandView view = p.shared ? shared_band(p, here) : band_view(p, worker);
  if (!p.shared) fill_band(p, here.n, here.group, here.band, view);
  const Grid at = p.in_place ? band_in_place(p, here.n, here.group, here.band)
                             : Grid{view.copy, s.stride_w * p.cg, s.stride_h * p.band_columns * p.cg};
  Region regions[most_regions];
  const int count = band_regions(p, here.band, at, regions);
  Upcoming next;
  if (!p.in_place && task + p.threads < p.tasks) {
    const ForwardTask then = forward_task_of(p, task + p.threads);
    const int64_t tiles = p.chunk * tiles_in(regions, count);
    if (p.shared)
      next.add(shared_band(p, then).copy, band_positions(p, rows_of_band(p, then.band)) * p.cg, tiles);
    else if (s.groups == 1)
      next.add(image_of(p, then.n, 0), band_window(p, then.band), tiles);
  }
  float *out = p.output + ((here.n * s.oh + here.band * p.band_rows) * s.ow) * s.cout + here.group * p.og;
  forward_tiles(p, here.group, here.chunk, at, {out, s.cout, s.ow * s.cout, 0, view.patch, 1, s.ow}, regions, count, *view.magnitude,
                next);
}

void forward_flat_task(const void *context, int64_t task, int worker) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const adderize_shape &s = p.s;
  const ForwardTask here = forward_task_of(p, task);
  const int64_t first = here.band * p.band_columns, columns = least(p.band_columns, s.ow - first);
  const BandView view = band_view(p, p.shared ? here.group * p.bands + here.band : worker);
  const float *x = p.input + first * s.c + here.group * p.cg;
  if (!p.shared) fill_band(p, 0, here.group, here.band, view);
  const Region region = row_region(columns, p.k, s.c, sum_widest[p.og > V]);
  Upcoming nothing;
  forward_tiles(p, here.group, here.chunk, {x, s.c, 0}, {p.output + first * s.cout + here.group * p.og, s.cout, 0, 0, view.channel, 1, 0},
                &region, 1, *view.magnitude, nothing);
}

void pack_forward_task(const void *context, int64_t task, int) {
  const ForwardPlan &p = *static_cast<const ForwardPlan *>(context);
  const int64_t vectors = packed_channels(p.og) / V, group = task / vectors, vector = task % vectors;
  const int64_t tile = vector / 2, first = vector * V, lane = group * vectors * V + first;
  pack_forward(p.s, p.filters, group * p.og + first, least(V, p.og - first),
               p.packed + group * p.group_floats + tile * tile_channels * p.k + vector % 2 * V, vectors_of(p.og, tile) * V,
               p.sums + lane, p.magnitudes + lane,
               p.taps.sums ? TapSums{p.taps.sums + lane, p.taps.magnitudes + lane, p.taps.lanes} : TapSums{});
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

  const int64_t buffers = p.shared ? p.s.n * p.s.groups * p.bands : threads;
  const int64_t lanes = p.s.groups * packed_channels(p.og);
  const int64_t tap_lanes = shape.padding_h || shape.padding_w ? taps * lanes : 0;
  float *memory = scratch(p.s.groups * p.group_floats + 2 * lanes + 2 * tap_lanes + buffers * p.buffer_floats + 64);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.packed = memory;
  p.sums = p.packed + round_up(p.s.groups * p.group_floats, 16);
  p.magnitudes = p.sums + lanes;
  if (tap_lanes) p.taps = {p.magnitudes + lanes, p.magnitudes + lanes + tap_lanes, lanes};
  p.buffers = p.packed + round_up(p.magnitudes + lanes + 2 * tap_lanes - p.packed, 16);
  // The filters are packed by the shape they have, not by the flattened one.
  ForwardPlan packing = p;
  packing.s = shape;
  parallel(p.s.groups * packed_channels(p.og) / V, threads, &packing, pack_forward_task);
  if (p.shared) parallel(buffers, threads, &p, fill_band_task);
  p.tasks = p.bands * p.chunks * p.s.groups * (p.flat ? 1 : p.s.n);
  p.threads = threads;
  parallel(p.tasks, threads, &p, p.flat ? forward_flat_task : forward_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
