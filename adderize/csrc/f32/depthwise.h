// Depthwise layers, and groups of as many input as output channels that divide a vector: read and written in place.
#pragma once

#include "f32/lanes.h"
#include "f32/line.h"
#include "f32/pack.h"

namespace adderize { namespace {

struct DepthwisePlan {
  LaneLayer layer;
  const LineKernels *kernels;
  Parts bands;
  float *packed;   // [block of lanes][term][lane]; a term is a tap, as the planes visit them, and a partner
  int64_t *place;  // of each tap in `packed`
  int *careful;
};

void run_line(const DepthwisePlan &p, const LineTaps &taps, const Line &line, int64_t positions) {
  if (p.layer.forward) return p.kernels->distance[positions - 1](taps, line);
  const bool full = p.layer.gradient == ADDERIZE_GRADIENT_FULL;
  const bool finite = (full ? p.kernels->full : p.kernels->sign)[positions - 1](taps, line);
  if (!full || (finite && !*p.careful)) return;
  for (int64_t i = 0; i < positions; ++i)
    p.kernels->careful(taps, {line.source + i * taps.step, line.in + i * taps.pixel, line.out + i * taps.pixel, line.w});
}

// Positions that see the same taps: lines along the rows, or down a single column.
void run_rectangle(const DepthwisePlan &p, const float *source, const LanePlane &plane, Span ys, Span xs) {
  if (ys.count() < 1 || xs.count() < 1) return;
  const LaneLayer &layer = p.layer;
  const Axis &vertical = plane.y, &horizontal = plane.x;
  const int64_t channels = layer.channels, source_row = layer.source_columns * channels;
  const bool down = xs.count() == 1;
  LineTaps taps = {vertical.taps, horizontal.taps, vertical.taps_inside(ys.first), horizontal.taps_inside(xs.first)};
  taps.row = vertical.advance * source_row, taps.column = horizontal.advance * channels;
  taps.step = down ? vertical.step * source_row : horizontal.step * channels;
  taps.pixel = down ? plane.row : plane.pixel;
  taps.channels = channels, taps.terms = layer.terms();
  const float *w = p.packed + plane.taps * layer.partners * V;
  const int64_t length = down ? ys.count() : xs.count(), lines = down ? 1 : ys.count(), parts = ceil_div(length, widest_line);
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t part = 0; part < parts; ++part) {
      const Span share = share_of(length, parts, part);
      const int64_t y = ys.first + (down ? share.first : i), x = xs.first + (down ? 0 : share.first);
      const int64_t at = plane.first + y * plane.row + x * plane.pixel;
      const int64_t seen = (y * vertical.step + vertical.base) * source_row + (x * horizontal.step + horizontal.base) * channels;
      run_line(p, taps, {source + seen, layer.input + at, layer.out + at, w}, share.count());
    }
}

// The interior as a whole; of the border, each row and column sees taps of its own.
void run_plane(const DepthwisePlan &p, const float *source, const LanePlane &plane, Span ys, Span xs) {
  const Span inner_y = plane.y.interior(ys), inner_x = plane.x.interior(xs);
  const auto across = [&](Span rows) {
    run_rectangle(p, source, plane, rows, inner_x);
    for (int64_t x = xs.first; x < inner_x.first; ++x) run_rectangle(p, source, plane, rows, {x, x + 1});
    for (int64_t x = inner_x.last; x < xs.last; ++x) run_rectangle(p, source, plane, rows, {x, x + 1});
  };
  for (int64_t y = ys.first; y < inner_y.first; ++y) across({y, y + 1});
  across(inner_y);
  for (int64_t y = inner_y.last; y < ys.last; ++y) across({y, y + 1});
}

// Something that is not 0 where a filter is not finite.
vec pack_lane_block(const DepthwisePlan &p, int64_t block) {
  const LaneLayer &layer = p.layer;
  const adderize_shape &s = layer.s;
  const int64_t *stride = layer.filters.stride, taps = s.kh * s.kw, lane = first_lane(block, layer.lanes);
  float *out = p.packed + block * layer.terms() * V;
  if (layer.partners == 1 && stride[3] == 1 && stride[2] == s.kw) {
    pack_lanes(layer.filters.data + lane * stride[0], stride[0], V, taps, [&](int64_t tap) { return out + p.place[tap] * V; });
  } else {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t k = 0; k < layer.partners; ++k)
        for (int64_t l = 0; l < V; ++l)
          out[(p.place[tap] * layer.partners + k) * V + l] = layer.filter(layer.filters.tap(tap / s.kw, tap % s.kw), lane + l, k);
  }
  vec trouble = {};
  for (int64_t term = 0; term < layer.terms(); ++term) trouble = fma(load(out + term * V), vec{}, trouble);
  return trouble;
}

void pack_depthwise(const DepthwisePlan &p, int threads) {
  constexpr int64_t pack_floats = 8192;
  int64_t at = 0;
  each_lane_tap(p.layer, [&](int64_t y, int64_t x) { p.place[y * p.layer.s.kw + x] = at++; });
  *p.careful = 0;
  const Parts blocks = parts_of(ceil_div(p.layer.lanes, V), ceil_div(pack_floats, p.layer.terms() * V));
  parallel(blocks.count, threads, [&](int64_t task, int) {
    vec trouble = {};
    for (int64_t block = blocks[task].first; block < blocks[task].last; ++block) trouble += pack_lane_block(p, block);
    if (!(total(trouble) == 0)) __atomic_store_n(p.careful, 1, __ATOMIC_RELAXED);
  });
}

bool is_depthwise(const adderize_shape &s) { return s.c == s.cout && s.c >= V && s.groups > 1 && line_kernels_of(s.c / s.groups); }

void run_depthwise(const LaneLayer &layer, int threads) {
  constexpr int64_t shortest_band = 4, longest_band = 16;
  const int64_t wanted_rows = ceil_div(layer.rows * layer.s.n, wanted_tasks);
  DepthwisePlan p = {};
  p.layer = layer;
  p.kernels = line_kernels_of(layer.partners);
  p.bands = parts_of(layer.rows, min(layer.rows, min(longest_band, max(shortest_band, wanted_rows))));
  allocate([&](Arena &arena) {
    arena.take(p.packed, ceil_div(layer.lanes, V) * layer.terms() * V);
    arena.take(p.place, layer.s.kh * layer.s.kw);
    arena.take(p.careful, 1);
  });
  pack_depthwise(p, threads);
  parallel(layer.s.n * p.bands.count, threads, [&](int64_t number, int) {
    TaskIndex index = {number};
    const Span rows = p.bands[index.take(p.bands.count)];
    const int64_t n = index.rest;
    const float *source = layer.source + n * layer.source_rows * layer.source_columns * layer.channels;
    each_lane_plane(layer, n, rows, [&](const LanePlane &plane, Span ys, Span xs) { run_plane(p, source, plane, ys, xs); });
  });
}

}}  // namespace adderize
