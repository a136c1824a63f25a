// The input gradient of layers with enough channels in a group to fill vectors, as a gather:
// dX[q, ci] = sum over taps and co of g[(q + padding - tap * dilation) / stride, co] * clip(F[co, tap, ci] - X[q, ci]).
#pragma once

#include "band.h"
#include "gradient_plane.h"

namespace adderize {
namespace {

constexpr int64_t packed_together = 8;  // output channels of a packing task: neighbours in memory on both sides

// Output channels [first, last) of one tap: out[tile][co][lane], tiles `step` floats apart. Something that is not 0 where a filter is
// not finite.
ADDERIZE_INLINE vec pack_tap(const GradientPlan &p, const float *tap, int64_t first, int64_t last, float *out, int64_t step) {
  const int64_t row = p.filters.stride[0], channel = p.filters.stride[1];
  vec trouble = {};
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    const int64_t lanes = least(V, p.cg - tile * V);
    for (int64_t co = first; co < last; ++co) {
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

// Order of k: rows of taps and columns of taps as the phase visits them, then output channels.
void pack_gradient_task(const void *context, int64_t task, int) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t *stride = p.filters.stride, blocks = ceil_div(p.og, packed_together), group = task / blocks;
  const int64_t first = task % blocks * packed_together, last = least(first + packed_together, p.og);
  const float *from = p.filters.data + group * p.og * stride[0];
  float *out = p.packed + group * p.group_floats;
  vec trouble = {};
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      for (int64_t i = 0; i < py.taps; ++i)
        for (int64_t j = 0; j < px.taps; ++j, out += p.og * V)
          trouble += pack_tap(p, from + (py.first - i * py.step) * stride[2] + (px.first - j * px.step) * stride[3], first, last, out, p.k * V);
    }
  }
  if (!(total(trouble) == 0)) __atomic_store_n(p.careful, 1, __ATOMIC_RELAXED);
}

// A chunk of channel tiles over the regions of a plane; `g` is what its first position sees first.
void gradient_tiles(const GradientPlan &p, int64_t group, int64_t chunk, const Grid &g, int64_t skipped, PhasePlane plane,
                    const Region *regions, int count, Upcoming &next) {
  const float *in = plane.in;
  float *out = plane.out;
  for (int64_t tile = chunk * p.chunk; tile < least((chunk + 1) * p.chunk, p.tiles); ++tile) {
    const int64_t first = tile * V;
    plane.in = in + first;
    plane.out = out + first;
    plane.channels = least(p.cg - first, V);
    for (int i = 0; i < count; ++i) {
      const Region &region = regions[i];
      const float *w = p.packed + group * p.group_floats + first * p.k + (skipped + region.filters) * V;
      gradient_plane(p, group, grid_of(region, g), w, plane, region, next);
    }
  }
}

void zero_plane(const GradientPlan &p, int64_t chunk, const PhasePlane &plane, int64_t rows, int64_t columns) {
  const int64_t first = chunk * p.chunk * V, end = least((chunk + 1) * p.chunk * V, p.cg);
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x)
      memset(plane.out + y * plane.row + x * plane.pixel + first, 0, size_t(end - first) * sizeof(float));
}

Image gradient_image(const GradientPlan &p, int64_t n, int64_t group) {
  return {p.grad + n * p.s.oh * p.s.ow * p.s.cout + group * p.og, p.s.oh, p.s.ow, p.og, p.s.cout};
}
Window band_window(const GradientPlan &p, int64_t band) {
  const int64_t y = band * p.band_rows;
  return gradient_window(p.s, y, least(p.band_rows, p.s.h - y));
}
void copy_gradient(const GradientPlan &p, int64_t n, int64_t group, int64_t band, float *out) {
  copy_window(gradient_image(p, n, group), band_window(p, band), out);
}

void gradient_task(const void *context, int64_t task, int worker) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task % s.n, band = task / s.n % p.bands, chunk = task / (s.n * p.bands) % p.chunks,
                group = task / (s.n * p.bands * p.chunks);
  float *buffer = p.buffers + (p.shared ? (group * s.n + n) * p.bands + band : worker) * p.buffer_floats;
  if (!p.shared) copy_gradient(p, n, group, band, buffer);

  const int64_t y0 = band * p.band_rows, y1 = least(y0 + p.band_rows, s.h);
  const Window window = band_window(p, band);
  Upcoming next;
  if (const int64_t then = task + p.threads; !p.shared && s.groups == 1 && then < p.tasks)
    next.add(gradient_image(p, then % s.n, 0), band_window(p, then / s.n % p.bands), p.chunk * ceil_div((y1 - y0) * s.w, clip_widest));
  const int64_t g_row = window.columns * p.og, base = (n * s.h * s.w) * s.c + group * p.cg;
  int64_t skipped = 0;  // terms of the phases before
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    const int64_t y = y0 + ((b - y0) % s.stride_h + s.stride_h) % s.stride_h;
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      const int64_t terms = py.taps * px.taps * p.og;
      if (y < y1 && a < s.w) {
        const int64_t rows = ceil_div(y1 - y, s.stride_h), columns = ceil_div(s.w - a, s.stride_w);
        const PhasePlane plane = {p.input + base + (y * s.w + a) * s.c, p.out + base + (y * s.w + a) * s.c, s.stride_w * s.c,
                                  s.stride_h * s.w * s.c, 0, n, y, a};
        if (terms == 0) {
          zero_plane(p, chunk, plane, rows, columns);
        } else {
          const TapAxis vertical = {py.position + (y - b) / s.stride_h, 1, py.taps, py.advance, s.oh};
          const TapAxis horizontal = {px.position, 1, px.taps, px.advance, s.ow};
          Region regions[most_regions];
          const int count = regions_of(vertical, horizontal, rows, columns, {p.og, g_row, p.og}, clip_widest, regions);
          const float *first = buffer + (vertical.base - window.row) * g_row + (horizontal.base - window.column) * p.og;
          gradient_tiles(p, group, chunk, {first, p.og, g_row}, skipped, plane, regions, count, next);
        }
      }
      skipped += terms;
    }
  }
}

void gradient_flat_task(const void *context, int64_t task, int) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t band = task % p.bands, chunk = task / p.bands % p.chunks, group = task / (p.bands * p.chunks);
  const int64_t first = band * p.band_rows, last = least(first + p.band_rows, s.w);
  // Where the filters stay in the cache, every position's inputs are read and written as a whole.
  const int widest = widest_of(clip_widest, s.cout);
  const bool whole = p.chunks == 1 && s.groups == 1 && p.tiles * V * p.k <= band_floats;
  const int64_t step = whole ? widest : p.band_rows;
  for (int64_t x = first; x < last; x += step) {
    const int64_t at = x * s.c + group * p.cg, then = x + step, positions = least(step, s.w - then);
    Upcoming next;
    if (positions > 0 && whole) {
      next.add(p.grad + then * s.cout, positions * s.cout, p.tiles);
      next.add(p.input + then * s.c, positions * s.c, p.tiles);
      next.add(p.out + then * s.c, positions * s.c, p.tiles);
    }
    const Region region = row_region(least(step, last - x), p.og, s.cout, clip_widest);
    gradient_tiles(p, group, chunk, {p.grad + x * s.cout + group * p.og, s.cout, 0}, 0, {p.input + at, p.out + at, s.c, 0, 0, 0, 0, x},
                   &region, 1, next);
  }
}

void copy_gradient_task(const void *context, int64_t task, int) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const int64_t band = task % p.bands, n = task / p.bands % p.s.n, group = task / (p.bands * p.s.n);
  copy_gradient(p, n, group, band, p.buffers + task * p.buffer_floats);
}

void divide(GradientPlan &p) {
  const adderize_shape &s = p.s;
  const int64_t images = s.n * s.groups;
  if (p.flat) {
    p.band_rows = least(least(flat_positions, ceil_div(band_floats, s.c)), ceil_div(s.w, 4));
    p.band_rows = round_up(p.band_rows, clip_widest);
    p.bands = ceil_div(s.w, p.band_rows);
  } else {
    const int64_t row = gradient_window(s, 0, 1).columns * p.og;
    const auto floats = [&](int64_t rows) { return round_up(tallest_gradient_window(s, rows) * row, 16); };
    p.band_rows = s.h;
    while (p.band_rows > 1 && floats(p.band_rows) > band_floats) --p.band_rows;
    p.bands = ceil_div(s.h, p.band_rows);
    if (images * p.bands * p.tiles < wanted_tasks)
      p.bands = most(p.bands, least(ceil_div(wanted_tasks, images * p.tiles), ceil_div(s.h, 4 * s.stride_h)));
    p.band_rows = ceil_div(s.h, p.bands);
    p.bands = ceil_div(s.h, p.band_rows);
    p.buffer_floats = floats(p.band_rows);
  }
  p.chunks = least(p.tiles, ceil_div(wanted_tasks, images * p.bands));
  p.chunk = ceil_div(p.tiles, p.chunks);
  p.chunks = ceil_div(p.tiles, p.chunk);
  p.shared = !p.flat && p.chunks > 1;
}

int input_gradient_wide(const adderize_shape &shape, const float *grad, const float *input, const Filters &filters, float *out,
                        int gradient, int threads) {
  GradientPlan p = {};
  p.s = with_short_strides(shape);
  p.grad = grad;
  p.input = input;
  p.out = out;
  p.filters = filters;
  p.gradient = gradient;
  const bool point = shape.kh == 1 && shape.kw == 1 && shape.stride_h == 1 && shape.stride_w == 1 && !shape.padding_h && !shape.padding_w;
  p.flat = point;
  if (point) {
    p.s.w = p.s.ow = shape.n * shape.h * shape.w;
    p.s.n = p.s.h = p.s.oh = 1;
  }
  const adderize_shape &s = p.s;
  p.cg = s.c / s.groups;
  p.og = s.cout / s.groups;
  p.k = s.kh * s.kw * p.og;
  p.tiles = ceil_div(p.cg, V);
  p.group_floats = p.tiles * V * p.k;
  divide(p);

  const int64_t buffers = p.flat ? 0 : p.shared ? s.n * s.groups * p.bands : threads;
  float *memory = scratch(round_up(s.groups * p.group_floats, 16) + buffers * p.buffer_floats + 64);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.packed = memory;
  p.careful = reinterpret_cast<int *>(memory + round_up(s.groups * p.group_floats, 16));
  p.buffers = memory + round_up(s.groups * p.group_floats, 16) + 16;
  *p.careful = 0;
  parallel(s.groups * ceil_div(p.og, packed_together), threads, &p, pack_gradient_task);
  if (p.shared) parallel(buffers, threads, &p, copy_gradient_task);
  p.tasks = p.bands * p.chunks * s.groups * (p.flat ? 1 : s.n);
  p.threads = threads;
  parallel(p.tasks, threads, &p, p.flat ? gradient_flat_task : gradient_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
