// The input gradient of one vector of channels over a plane of positions.
#pragma once

#include "kernels.h"
#include "phases.h"
#include "regions.h"

namespace adderize {
namespace {

struct GradientPlan {
  adderize_shape s;
  const float *grad, *input;
  float *out;
  Filters filters;
  int gradient;
  int64_t cg, og, k, tiles, group_floats;  // k: terms of one input, kh * kw * og
  bool flat;
  int64_t band_rows, bands, chunk, chunks, buffer_floats;
  bool shared;
  int64_t tasks, threads;
  float *packed, *buffers;
  int *careful;  // set where a filter is not finite
};

// Inputs of one phase, the first one at (y, x) of image n; strides in floats.
struct PhasePlane {
  const float *in;
  float *out;
  int64_t pixel, row, channels;
  int64_t n, y, x;
};

// The formula term by term, without padding: a clip that keeps NaN, and no NaN from a padded 0 * NaN.
void careful_position(const GradientPlan &p, int64_t n, int64_t y, int64_t x, int64_t group, const float *w, const float *in, float *sums) {
  const adderize_shape &s = p.s;
  const int64_t b = y % s.stride_h, a = x % s.stride_w;
  const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
  const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
  vec acc = {};
  for (int64_t i = 0; i < py.taps; ++i)
    for (int64_t j = 0; j < px.taps; ++j, w += p.og * V) {
      const int64_t oy = py.position + i * py.advance + (y - b) / s.stride_h, ox = px.position + j * px.advance + (x - a) / s.stride_w;
      if (oy < 0 || oy >= s.oh || ox < 0 || ox >= s.ow) continue;
      const float *g = p.grad + ((n * s.oh + oy) * s.ow + ox) * s.cout + group * p.og;
      for (int64_t co = 0; co < p.og;) {
        vec part = {};
        for (const int64_t end = least(co + flush_clip_every, p.og); co < end; ++co)
          part = fma(all(g[co]), clip_keeping_nan(load(w + co * V) - load(in)), part);
        acc += part;
      }
    }
  store(sums, acc);
}

// Where the plane's vectors are partial, its tiles pass through whole ones here.
struct Padded {
  alignas(64) float in[most_positions * V], out[most_positions * V];

  template <class Move>
  void each(const Tile &tile, int64_t r_count, int64_t q_count, Move move) {
    for (int64_t r = 0; r < r_count; ++r)
      for (int64_t q = 0; q < q_count; ++q) move(r * tile.row + q * tile.pixel, (r * q_count + q) * V);
  }
};

// `g` is what the region's first position sees first.
void gradient_plane(const GradientPlan &p, int64_t group, const Grid &g, const float *w, const PhasePlane &plane, const Region &region,
                    Upcoming &next) {
  Padded padded;
  const bool full = p.gradient == ADDERIZE_GRADIENT_FULL, whole = plane.channels == V, upright = region.upright;
  const auto &tiles = full ? full_tiles : sign_tiles;
  const Cut &cut = region.cut;
  const int64_t rows = region.rows(), columns = region.columns();
  const int64_t pixel = upright ? plane.row : plane.pixel, row = upright ? plane.pixel : plane.row;
  const int64_t origin = region.y.first * plane.row + region.x.first * plane.pixel;
  for (int64_t top = 0; top < rows;) {
    const int64_t r_count = least(cut.rows, rows - top);
    for (int64_t i = 0; i < cut.columns; ++i) {
      const int64_t left = i * columns / cut.columns, q_count = (i + 1) * columns / cut.columns - left;
      const int64_t corner = origin + top * row + left * pixel;
      const Grid at = {g.base + top * g.row + left * g.pixel, g.pixel, g.row};
      const Tile tile = {plane.in + corner, plane.out + corner, pixel, row};
      prefetch<1>(tile.out, tile.pixel, tile.row, q_count, r_count);
      next.fetch();
      if (i + 1 < cut.columns)
        prefetch<1>(tile.in + q_count * tile.pixel, tile.pixel, tile.row, q_count, r_count);
      else if (top + r_count < rows)
        prefetch<1>(plane.in + origin + (top + r_count) * row, tile.pixel, tile.row, q_count, 1);
      const Tile copy = {padded.in, padded.out, V, q_count * V};
      if (!whole)
        padded.each(tile, r_count, q_count,
                    [&](int64_t from, int64_t to) { store(padded.in + to, load(tile.in + from, plane.channels)); });
      const bool finite = tiles[r_count - 1][q_count](at, region.runs, w, whole ? tile : copy);
      if (full && (!finite || *p.careful)) {
        const Tile &used = whole ? tile : copy;
        for (int64_t r = 0; r < r_count; ++r)
          for (int64_t q = 0; q < q_count; ++q) {
            const int64_t at_position = r * used.row + q * used.pixel;
            const int64_t y = region.y.first + (upright ? left + q : top + r), x = region.x.first + (upright ? top + r : left + q);
            careful_position(p, plane.n, plane.y + y * p.s.stride_h, plane.x + x * p.s.stride_w, group, w - region.filters * V,
                             used.in + at_position, used.out + at_position);
          }
      }
      if (!whole)
        padded.each(tile, r_count, q_count,
                    [&](int64_t to, int64_t from) { store(tile.out + to, load(padded.out + from), plane.channels); });
    }
    top += r_count;
  }
}

}  // namespace
}  // namespace adderize
