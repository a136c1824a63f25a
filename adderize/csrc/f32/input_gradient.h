// The input gradient of layers with enough channels in a group to fill vectors, as a gather:
// dX[q, ci] = sum over taps and co of g[(q + padding - tap * dilation) / stride, co] * clip(F[co, tap, ci] - X[q, ci]).
#pragma once

#include "f32/regions.h"
#include "f32/window.h"
#include "kernels.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace adderize { namespace {

constexpr int64_t packed_together = 8;  // output channels of a packing task: neighbours in memory on both sides

struct GradientPlan {
  adderize_shape s;
  const float *grad, *input;
  float *out;
  Filters filters;
  int gradient;
  int64_t cg, og, k, tiles;  // k: terms of one input, kh * kw * og
  bool flat;                 // 1x1, unit stride, no padding: positions of all images form one row, whose bands are columns
  BandWork work;             // bands of rows or, if flat, of columns; chunks of vectors of channels
  int64_t buffer_floats, threads;
  float *packed, *buffers;  // [group][tile][k][lane]
  int *careful;             // set where a filter is not finite

  Image image(int64_t n, int64_t group) const { return {grad + n * s.oh * s.ow * s.cout + group * og, s.oh, s.ow, og, s.cout}; }
  Window window(int64_t band) const { return gradient_window(s, work.bands[band]); }
  float *tile(int64_t group, int64_t index) const { return packed + (group * tiles + index) * k * V; }
};

// Output channels of one tap: out[tile][co][lane], tiles `step` floats apart. Something that is not 0 where a filter is not finite.
ADDERIZE_INLINE vec pack_tap(const GradientPlan &p, const float *tap, Span channels, float *out, int64_t step) {
  const int64_t row = p.filters.stride[0], channel = p.filters.stride[1];
  vec trouble = {};
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    const int64_t lanes = min(V, p.cg - tile * V);
    for (int64_t co = channels.first; co < channels.last; ++co) {
      const float *from = tap + co * row + tile * V * channel;
      vec filter = {};
      if (channel == 1)
        filter = load(from, lanes);
      else
        for (int64_t lane = 0; lane < lanes; ++lane) filter[lane] = from[lane * channel];
      store(out + tile * step + co * V, filter);
      trouble += filter - filter;
    }
  }
  return trouble;
}

// Order of k: the taps as the phases visit them, then output channels.
void pack_for_gradient(const GradientPlan &p) {
  const Parts together = parts_of(p.og, packed_together);
  parallel(p.s.groups * together.count, int(p.threads), [&](int64_t task, int) {
    const int64_t group = task / together.count;
    const Span channels = together[task % together.count];
    float *out = p.tile(group, 0);
    vec trouble = {};
    each_tap_by_phase(p.s, [&](int64_t y, int64_t x) {
      trouble += pack_tap(p, p.filters.tap(y, x) + group * p.og * p.filters.stride[0], channels, out, p.k * V);
      out += p.og * V;
    });
    if (!(total(trouble) == 0)) __atomic_store_n(p.careful, 1, __ATOMIC_RELAXED);
  });
}

// Inputs of one phase and of one vector of channels. The first one is (y, x) of the phase; strides in floats.
struct PhasePlane {
  const Phase &phase;
  int64_t n, group, y, x;
  const float *in;
  float *out;
  int64_t pixel, row, channels;
};

// The formula term by term, without padding: a clip that keeps NaN, and no NaN from a padded 0 * NaN. `w`: the phase's filters.
void careful_position(const GradientPlan &p, const PhasePlane &plane, int64_t y, int64_t x, const float *w, const float *in,
                      float *out) {
  const Axis &vertical = plane.phase.y.axis, &horizontal = plane.phase.x.axis;
  const Image g = p.image(plane.n, plane.group);
  const Span rows = vertical.taps_inside(plane.y + y), columns = horizontal.taps_inside(plane.x + x);
  vec acc = {};
  for (int64_t i = rows.first; i < rows.last; ++i)
    for (int64_t j = columns.first; j < columns.last; ++j) {
      const int64_t oy = vertical.base + plane.y + y + i * vertical.advance;
      const int64_t ox = horizontal.base + plane.x + x + j * horizontal.advance;
      const float *at = g.data + (oy * g.w + ox) * g.stride, *filters = w + (i * horizontal.taps + j) * p.og * V;
      for (int64_t co = 0; co < p.og;) {
        vec part = {};
        for (const int64_t end = min(co + flush_clip_every, p.og); co < end; ++co)
          part = fma(all(at[co]), clip_keeping_nan(load(filters + co * V) - load(in)), part);
        acc += part;
      }
    }
  store(out, acc);
}

// Where the plane's vectors are partial, its tiles pass through whole ones here.
struct WholeVectors {
  alignas(64) float in[most_positions * V], out[most_positions * V];
};

// `w` are the phase's filters, `plane_pixels` is what the plane's first position sees first.
void gradient_region(const GradientPlan &p, const PhasePlane &plane, const Region &region, const PixelView &plane_pixels,
                     const float *w, Upcoming &next) {
  WholeVectors copies;
  const bool full = p.gradient == ADDERIZE_GRADIENT_FULL, partial = plane.channels < V, upright = region.upright;
  const auto &tiles = full ? clip_tiles<Clip::full> : clip_tiles<Clip::sign>;
  const Cut &cut = region.cut;
  const PixelView g = region.pixels(plane_pixels);
  const int64_t rows = region.rows(), columns = region.columns(), y0 = region.y.positions.first, x0 = region.x.positions.first;
  const int64_t pixel = upright ? plane.row : plane.pixel, row = upright ? plane.pixel : plane.row;
  const int64_t origin = y0 * plane.row + x0 * plane.pixel;
  for (int64_t top = 0; top < rows; top += cut.rows) {
    const int64_t r_count = min(cut.rows, rows - top);
    for (int64_t strip = 0; strip < cut.columns; ++strip) {
      const Span across = share_of(columns, cut.columns, strip);
      const int64_t left = across.first, q_count = across.count(), corner = origin + top * row + left * pixel;
      const Tile tile = {plane.in + corner, plane.out + corner, pixel, row}, copy = {copies.in, copies.out, V, q_count * V};
      prefetch_tile<1>(tile.out, pixel, row, q_count, r_count);
      next.fetch();
      if (strip + 1 < cut.columns)
        prefetch_tile<1>(tile.in + q_count * pixel, pixel, row, q_count, r_count);
      else if (top + r_count < rows)
        prefetch_tile<1>(plane.in + origin + (top + r_count) * row, pixel, row, q_count, 1);
      // body(r, q, floats from the tile's corner, floats from that of the copy)
      const auto each_position = [&](auto body) {
        for (int r = 0; r < r_count; ++r)
          for (int q = 0; q < q_count; ++q) body(r, q, r * row + q * pixel, (r * q_count + q) * V);
      };
      if (partial)
        each_position([&](int, int, int64_t at, int64_t to) { store(copies.in + to, load(tile.in + at, plane.channels)); });
      const Tile &used = partial ? copy : tile;
      const PixelView here = {g.base + top * g.row + left * g.pixel, g.pixel, g.row};
      const bool finite = tiles[r_count - 1][q_count - 1](here, region.runs, w + region.filters * V, used);
      if (full && (!finite || *p.careful))
        each_position([&](int r, int q, int64_t at, int64_t to) {
          const int64_t y = y0 + (upright ? left + q : top + r), x = x0 + (upright ? top + r : left + q), place = partial ? to : at;
          careful_position(p, plane, y, x, w, used.in + place, used.out + place);
        });
      if (partial)
        each_position([&](int, int, int64_t at, int64_t to) { store(tile.out + at, load(copies.out + to), plane.channels); });
    }
  }
}

// A chunk of channel tiles over the regions of a plane; `g` is what its first position sees first.
void gradient_plane(const GradientPlan &p, const Span &tiles, PhasePlane plane, const Regions &regions, const PixelView &g,
                    Upcoming &next) {
  const float *in = plane.in;
  float *out = plane.out;
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    plane.in = in + tile * V;
    plane.out = out + tile * V;
    plane.channels = min(p.cg - tile * V, V);
    const float *w = p.tile(plane.group, tile) + plane.phase.before * p.og * V;
    for (const Region &region : regions) gradient_region(p, plane, region, g, w, next);
  }
}

// Of a phase that no tap reaches.
void zero_plane(const GradientPlan &p, const Span &tiles, const PhasePlane &plane, int64_t rows, int64_t columns) {
  const int64_t first = tiles.first * V, channels = min(tiles.last * V, p.cg) - first;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x)
      memset(plane.out + y * plane.row + x * plane.pixel + first, 0, size_t(channels) * sizeof(float));
}

void gradient_task(const GradientPlan &p, int64_t number, int worker) {
  const adderize_shape &s = p.s;
  const BandTask task = p.work.task(number);
  const Span rows = p.work.bands[task.band], tiles = p.work.chunks[task.chunk];
  const Window window = p.window(task.band);
  float *buffer = p.buffers + p.work.buffer(task, worker) * p.buffer_floats;
  if (!p.work.shared) copy_window(p.image(task.n, task.group), window, buffer);
  Upcoming next;
  if (const int64_t then = number + p.threads; !p.work.shared && s.groups == 1 && then < p.work.tasks())
    next.add(p.image(p.work.task(then).n, 0), p.window(p.work.task(then).band),
             p.work.chunks.size * ceil_div(rows.count() * s.w, clip_widest));
  const int64_t g_row = window.columns * p.og, image = task.n * s.h * s.w * s.c + task.group * p.cg;
  each_phase(s, [&](const Phase &phase) {
    const Span ys = phase.y.positions(rows), xs = phase.x.positions({0, s.w});
    if (ys.count() < 1 || xs.count() < 1) return;
    const int64_t first = image + ((phase.y.offset + ys.first * s.stride_h) * s.w + phase.x.offset) * s.c;
    const int64_t pixel = s.stride_w * s.c, row = s.stride_h * s.w * s.c;
    const PhasePlane plane = {phase, task.n, task.group, ys.first, 0, p.input + first, p.out + first, pixel, row, 0};
    if (phase.taps() == 0) return zero_plane(p, tiles, plane, ys.count(), xs.count());
    Reading read = {phase.y.axis, phase.x.axis, p.og, g_row, p.og};
    read.vertical.base += ys.first;
    const float *seen = buffer + (read.vertical.base - window.row) * g_row + (read.horizontal.base - window.column) * p.og;
    gradient_plane(p, tiles, plane, regions_of(read, ys.count(), xs.count(), clip_widest), {seen, p.og, g_row}, next);
  });
}

void gradient_flat_task(const GradientPlan &p, int64_t number) {
  const adderize_shape &s = p.s;
  const BandTask task = p.work.task(number);
  const Span band = p.work.bands[task.band];
  // Where the filters stay in the cache, every position's inputs are read and written as a whole.
  const bool whole = p.work.chunks.count == 1 && s.groups == 1 && p.tiles * V * p.k <= window_floats;
  const int64_t step = whole ? widest_of(clip_widest, s.cout) : p.work.bands.size;
  const Phase phase = {phase_of(0, vertical_axis(s), s.oh), phase_of(0, horizontal_axis(s), s.ow), 0};
  for (int64_t x = band.first; x < band.last; x += step) {
    const int64_t at = x * s.c + task.group * p.cg, then = x + step, positions = min(step, s.w - then);
    Upcoming next;
    if (positions > 0 && whole) {
      next.add(p.grad + then * s.cout, positions * s.cout, p.tiles);
      next.add(p.input + then * s.c, positions * s.c, p.tiles);
      next.add(p.out + then * s.c, positions * s.c, p.tiles);
    }
    const Regions regions = regions_of({phase.y.axis, phase.x.axis, s.cout, 0, p.og}, 1, min(step, band.last - x), clip_widest);
    const PhasePlane plane = {phase, 0, task.group, 0, x, p.input + at, p.out + at, s.c, 0, 0};
    gradient_plane(p, p.work.chunks[task.chunk], plane, regions, {p.grad + x * s.cout + task.group * p.og, s.cout, 0}, next);
  }
}

// Decides bands and chunks from the shape alone: the result must not depend on the number of threads.
void divide_gradient(GradientPlan &p) {
  const adderize_shape &s = p.s;
  BandWork &work = p.work;
  work.images = s.n;
  work.groups = s.groups;
  const int64_t images = s.n * s.groups;
  if (p.flat) {
    const int64_t positions = min(min(flat_positions, ceil_div(window_floats, s.c)), ceil_div(s.w, 4));
    work.bands = parts_of(s.w, round_up(positions, clip_widest));
  } else {
    const auto floats = [&](int64_t rows) {
      const Window window = largest_gradient_window(s, rows);
      return round_up(window.rows * window.columns * p.og, 16);
    };
    work.bands = bands_of(s.h, window_floats, min(ceil_div(wanted_tasks, images * p.tiles), ceil_div(s.h, 4 * s.stride_h)), floats);
    p.buffer_floats = floats(work.bands.size);
  }
  work.chunks = at_most(p.tiles, min(p.tiles, ceil_div(wanted_tasks, images * work.bands.count)));
  work.shared = !p.flat && work.chunks.count > 1;
}

void input_gradient_wide(const adderize_shape &shape, const float *grad, const float *input, const Filters &filters, float *out,
                         int gradient, int threads) {
  GradientPlan p = {};
  adderize_shape &s = p.s;
  s = with_short_strides(shape);
  p.grad = grad;
  p.input = input;
  p.out = out;
  p.filters = filters;
  p.gradient = gradient;
  p.threads = threads;
  p.flat = s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && !s.padding_h && !s.padding_w;
  if (p.flat) {
    s.w = s.ow = s.n * s.h * s.w;
    s.n = s.h = s.oh = 1;
  }
  p.cg = s.c / s.groups;
  p.og = s.cout / s.groups;
  p.k = s.kh * s.kw * p.og;
  p.tiles = ceil_div(p.cg, V);
  divide_gradient(p);
  allocate([&](Arena &arena) {
    arena.take(p.packed, s.groups * p.tiles * V * p.k);
    arena.take(p.careful, 1);
    arena.take(p.buffers, p.work.buffers(threads) * p.buffer_floats);
  });
  *p.careful = 0;
  pack_for_gradient(p);
  if (p.work.shared)
    parallel(p.work.copies(), threads, [&](int64_t number, int) {
      const BandTask task = p.work.copy(number);
      copy_window(p.image(task.n, task.group), p.window(task.band), p.buffers + number * p.buffer_floats);
    });
  parallel(p.work.tasks(), threads,
           [&](int64_t number, int worker) { p.flat ? gradient_flat_task(p, number) : gradient_task(p, number, worker); });
}

}}  // namespace adderize
