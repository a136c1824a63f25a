// The input gradient of layers with enough channels in a group to fill vectors, as a gather:
// dX[q, ci] = sum over taps and co of g[(q + padding - tap * dilation) / stride, co] * clip(F[co, tap, ci] - X[q, ci]).
#pragma once

#include "band.h"
#include "forward.h"
#include "pack.h"
#include "tiles.h"

namespace adderize {
namespace {

// With stride S the inputs fall into S * S phases; the inputs of a phase share their taps. One axis of that:
struct Phase {
  int64_t taps;      // number of taps that reach this phase
  int64_t first;     // the last tap in the filter: taps are first, first - step, ...
  int64_t step;
  int64_t position;  // output position of the phase's first input under tap `first`; it grows by `advance` a tap
  int64_t advance;
};

Phase phase_of(int64_t offset, int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
  Phase phase = {0, -1, 1, 0, 0};
  for (int64_t t = k - 1; t >= 0; --t) {
    const int64_t at = offset + padding - t * dilation;
    if (((at % stride) + stride) % stride) continue;
    if (phase.taps == 0) {
      phase.first = t;
      phase.position = at / stride;
    } else if (phase.taps == 1) {
      phase.step = phase.first - t;
      phase.advance = at / stride - phase.position;
    }
    ++phase.taps;
  }
  return phase;
}

// A stride as long as the padded input already leaves a single output: a longer one would only add empty phases.
adderize_shape with_short_strides(adderize_shape s) {
  s.stride_h = least(s.stride_h, s.h + 2 * s.padding_h);
  s.stride_w = least(s.stride_w, s.w + 2 * s.padding_w);
  return s;
}

struct GradientPlan {
  adderize_shape s;
  const float *grad, *input;
  float *out;
  Filters filters;
  int gradient;
  int64_t cg, og, k, tiles, group_floats;  // k: terms of one input, kh * kw * og
  bool flat;
  int64_t band_rows, bands, chunk, chunks, buffer_floats;
  int64_t g_column, g_columns;  // the window of g that a band of inputs needs: columns
  bool shared;
  float *packed, *buffers;
  int *careful;  // set where a filter is not finite
};

// Rows of g that the input rows [y, y + rows) need.
Window gradient_window(const GradientPlan &p, int64_t y, int64_t rows) {
  const adderize_shape &s = p.s;
  const auto floor_div = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); };
  const int64_t from = floor_div(y + s.padding_h - (s.kh - 1) * s.dilation_h, s.stride_h);
  const int64_t to = floor_div(y + rows - 1 + s.padding_h, s.stride_h);
  return {from, to - from + 1, p.g_column, p.g_columns};
}

// Order of k: rows of taps and columns of taps as the phase visits them, then output channels.
void pack_gradient(const GradientPlan &p, int64_t group, int64_t first, int64_t lanes, float *out, int64_t step) {
  const adderize_shape &s = p.s;
  const int64_t *stride = p.filters.stride;
  const float *from = p.filters.data + group * p.og * stride[0] + first * stride[1];
  vec trouble = {};
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      for (int64_t i = 0; i < py.taps; ++i)
        for (int64_t j = 0; j < px.taps; ++j) {
          const float *tap = from + (py.first - i * py.step) * stride[2] + (px.first - j * px.step) * stride[3];
          for (int64_t co = 0; co < p.og; ++co, out += step) {
            const float *row = tap + co * stride[0];
            if (stride[1] == 1) {
              store(out, load(row, lanes));
            } else {
              for (int64_t lane = 0; lane < V; ++lane) out[lane] = lane < lanes ? row[lane * stride[1]] : 0.0f;
            }
            trouble += load(out) - load(out);
          }
        }
    }
  }
  if (!(total(trouble) == 0)) __atomic_store_n(p.careful, 1, __ATOMIC_RELAXED);
}

void pack_gradient_task(const void *context, int64_t task, int) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const int64_t vectors = packed_channels(p.cg) / V, group = task / vectors, vector = task % vectors;
  const int64_t tile = vector / 2, first = vector * V;
  pack_gradient(p, group, first, least(V, p.cg - first), p.packed + group * p.group_floats + tile * tile_channels * p.k + vector % 2 * V,
                vectors_of(p.cg, tile) * V);
}

// Inputs of one phase: rows x columns of them, the first one at (y, x) of image n; strides in floats.
struct PhasePlane {
  const float *in;
  float *out;
  int64_t pixel, row, rows, columns, channels;
  int64_t n, y, x;
};

// The formula term by term, without padding: a clip that keeps NaN, and no NaN from a padded 0 * NaN.
template <int N>
void careful_position(const GradientPlan &p, int64_t n, int64_t y, int64_t x, int64_t group, const float *w, const float *in, float *sums) {
  const adderize_shape &s = p.s;
  const int64_t b = y % s.stride_h, a = x % s.stride_w;
  const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
  const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
  vec acc[N] = {};
  for (int64_t i = 0; i < py.taps; ++i)
    for (int64_t j = 0; j < px.taps; ++j, w += p.og * N * V) {
      const int64_t oy = py.position + i * py.advance + (y - b) / s.stride_h, ox = px.position + j * px.advance + (x - a) / s.stride_w;
      if (oy < 0 || oy >= s.oh || ox < 0 || ox >= s.ow) continue;
      const float *g = p.grad + ((n * s.oh + oy) * s.ow + ox) * s.cout + group * p.og;
      for (int64_t co = 0; co < p.og;) {
        vec part[N] = {};
        for (const int64_t end = least(co + flush_clip_every, p.og); co < end; ++co)
          for (int k = 0; k < N; ++k)
            part[k] = fma(all(g[co]), clip_keeping_nan(load(w + (co * N + k) * V) - load(in + k * V)), part[k]);
        for (int k = 0; k < N; ++k) acc[k] += part[k];
      }
    }
  for (int k = 0; k < N; ++k) store(sums + k * V, acc[k]);
}

// Where the plane's last vector is partial, its tiles pass through whole vectors here.
template <int N>
struct Padded {
  alignas(64) float in[most_positions * N * V], out[most_positions * N * V];

  template <class Move>
  void each(const PhasePlane &plane, const Tile &tile, int64_t r_count, int64_t q_count, Move move) {
    const int64_t last = plane.channels - (N - 1) * V;
    for (int64_t r = 0; r < r_count; ++r)
      for (int64_t q = 0; q < q_count; ++q)
        for (int n = 0; n < N; ++n)
          move(r * tile.row + q * tile.pixel + n * V, ((r * q_count + q) * N + n) * V, n == N - 1 ? last : V);
  }
};

template <int N>
void gradient_plane(const GradientPlan &p, int64_t group, const Grid &g, const Runs &runs, const float *w, const PhasePlane &plane,
                    const Cut &cut) {
  Padded<N> padded;
  const bool full = p.gradient == ADDERIZE_GRADIENT_FULL, whole = plane.channels == N * V;
  const auto &tiles = (full ? full_tiles : sign_tiles)[N - 1];
  for (int64_t top = 0; top < plane.rows;) {
    const int64_t r_count = least(cut.rows, plane.rows - top);
    for (int64_t i = 0; i < cut.columns; ++i) {
      const int64_t left = i * plane.columns / cut.columns, q_count = (i + 1) * plane.columns / cut.columns - left;
      const int64_t corner = top * plane.row + left * plane.pixel;
      const Grid at = {g.base + top * g.row + left * g.pixel, g.pixel, g.row};
      const Tile tile = {plane.in + corner, plane.out + corner, plane.pixel, plane.row};
      prefetch<N>(tile.out, tile.pixel, tile.row, q_count, r_count);
      if (i + 1 < cut.columns)
        prefetch<N>(tile.in + q_count * tile.pixel, tile.pixel, tile.row, q_count, r_count);
      else if (top + r_count < plane.rows)
        prefetch<N>(plane.in + (top + r_count) * plane.row, tile.pixel, tile.row, q_count, 1);
      const Tile copy = {padded.in, padded.out, N * V, q_count * N * V};
      if (!whole)
        padded.each(plane, tile, r_count, q_count,
                    [&](int64_t from, int64_t to, int64_t count) { store(padded.in + to, load(tile.in + from, count)); });
      const bool finite = tiles[r_count - 1][q_count](at, runs, w, whole ? tile : copy);
      if (full && (!finite || *p.careful)) {
        const Tile &used = whole ? tile : copy;
        for (int64_t r = 0; r < r_count; ++r)
          for (int64_t q = 0; q < q_count; ++q) {
            const int64_t at_position = r * used.row + q * used.pixel;
            careful_position<N>(p, plane.n, plane.y + (top + r) * p.s.stride_h, plane.x + (left + q) * p.s.stride_w, group, w,
                                used.in + at_position, used.out + at_position);
          }
      }
      if (!whole)
        padded.each(plane, tile, r_count, q_count,
                    [&](int64_t to, int64_t from, int64_t count) { store(tile.out + to, load(padded.out + from), count); });
    }
    top += r_count;
  }
}

void gradient_tiles(const GradientPlan &p, int64_t group, int64_t chunk, const Grid &g, const Runs &runs, int64_t skipped,
                    PhasePlane plane) {
  const float *in = plane.in;
  float *out = plane.out;
  const Cut shape = cut(plane.columns, plane.rows, clip_widest[p.cg > V]);
  const Cut narrow = cut(plane.columns, plane.rows, clip_widest[0]);
  for (int64_t tile = chunk * p.chunk; tile < least((chunk + 1) * p.chunk, p.tiles); ++tile) {
    const int64_t first = tile * tile_channels, vectors = vectors_of(p.cg, tile);
    const float *w = p.packed + group * p.group_floats + first * p.k + skipped * vectors * V;
    plane.in = in + first;
    plane.out = out + first;
    plane.channels = least(p.cg - first, tile_channels);
    if (vectors == 2)
      gradient_plane<2>(p, group, g, runs, w, plane, shape);
    else
      gradient_plane<1>(p, group, g, runs, w, plane, narrow);
  }
}

void zero_plane(const GradientPlan &p, int64_t chunk, const PhasePlane &plane) {
  const int64_t first = chunk * p.chunk * tile_channels, end = least((chunk + 1) * p.chunk * tile_channels, p.cg);
  for (int64_t y = 0; y < plane.rows; ++y)
    for (int64_t x = 0; x < plane.columns; ++x)
      memset(plane.out + y * plane.row + x * plane.pixel + first, 0, size_t(end - first) * sizeof(float));
}

void copy_gradient(const GradientPlan &p, int64_t n, int64_t group, int64_t band, float *out) {
  const adderize_shape &s = p.s;
  const int64_t y = band * p.band_rows, rows = least(p.band_rows, s.h - y);
  copy_window({p.grad + n * s.oh * s.ow * s.cout + group * p.og, s.oh, s.ow, p.og, s.cout}, gradient_window(p, y, rows), out);
}

constexpr int64_t most_runs = 256;  // of one tile call; longer filters take several

void gradient_task(const void *context, int64_t task, int worker) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task % s.n, band = task / s.n % p.bands, chunk = task / (s.n * p.bands) % p.chunks,
                group = task / (s.n * p.bands * p.chunks);
  float *buffer = p.buffers + (p.shared ? (group * s.n + n) * p.bands + band : worker) * p.buffer_floats;
  if (!p.shared) copy_gradient(p, n, group, band, buffer);
  int64_t *offsets = reinterpret_cast<int64_t *>(buffer + p.buffer_floats - round_up(2 * s.kh * s.kw, 16)) ;
  int64_t own[most_runs];
  if (s.kh * s.kw <= most_runs) offsets = own;

  const int64_t y0 = band * p.band_rows, y1 = least(y0 + p.band_rows, s.h);
  const Window window = gradient_window(p, y0, y1 - y0);
  const int64_t g_row = p.g_columns * p.og, base = (n * s.h * s.w) * s.c + group * p.cg;
  int64_t skipped = 0;  // terms of the phases before
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    const int64_t y = y0 + ((b - y0) % s.stride_h + s.stride_h) % s.stride_h;
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      const int64_t terms = py.taps * px.taps * p.og;
      if (y < y1 && a < s.w) {
        PhasePlane plane = {p.input + base + (y * s.w + a) * s.c, p.out + base + (y * s.w + a) * s.c, s.stride_w * s.c,
                            s.stride_h * s.w * s.c, ceil_div(y1 - y, s.stride_h), ceil_div(s.w - a, s.stride_w), 0, n, y, a};
        if (terms == 0) {
          zero_plane(p, chunk, plane);
        } else {
          const bool joined = px.taps == 1 || px.advance == 1;
          Runs runs = {py.taps * (joined ? 1 : px.taps), (joined ? px.taps : 1) * p.og, offsets};
          const int64_t top = py.position + (y - b) / s.stride_h - window.row, left = px.position - window.column;
          for (int64_t i = 0; i < runs.count; ++i) {
            const int64_t ty = joined ? i : i / px.taps, tx = joined ? 0 : i % px.taps;
            offsets[i] = ((top + ty * py.advance) * p.g_columns + left + tx * px.advance) * p.og;
          }
          gradient_tiles(p, group, chunk, {buffer, p.og, g_row}, runs, skipped, plane);
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
  const int64_t first = band * p.band_rows, columns = least(p.band_rows, s.w - first);
  const int64_t offset = 0;
  const int64_t at = first * s.c + group * p.cg;
  gradient_tiles(p, group, chunk, {p.grad + first * s.cout + group * p.og, s.cout, 0}, {1, p.og, &offset}, 0,
                 {p.input + at, p.out + at, s.c, 0, 1, columns, 0, 0, 0, first});
}

void copy_gradient_task(const void *context, int64_t task, int) {
  const GradientPlan &p = *static_cast<const GradientPlan *>(context);
  const int64_t band = task % p.bands, n = task / p.bands % p.s.n, group = task / (p.bands * p.s.n);
  copy_gradient(p, n, group, band, p.buffers + task * p.buffer_floats);
}

void divide(GradientPlan &p) {
  const adderize_shape &s = p.s;
  const int64_t images = s.n * s.groups, spare = s.kh * s.kw > most_runs ? round_up(2 * s.kh * s.kw, 16) : 0;
  if (p.flat) {
    p.band_rows = least(flat_positions, round_up(ceil_div(s.w, 4), clip_widest[p.cg > V]));
    p.bands = ceil_div(s.w, p.band_rows);
  } else {
    const auto floats = [&](int64_t rows) {
      int64_t largest = 0;  // a window's height depends on where the band starts, by one row at most
      for (int64_t y = 0; y < s.stride_h; ++y) largest = most(largest, gradient_window(p, y, rows).rows);
      return round_up(largest * p.g_columns * p.og, 16) + spare;
    };
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
  p.shared = !p.flat && p.chunks > 1 && spare == 0;
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
  p.tiles = tiles_of(p.cg);
  p.group_floats = packed_channels(p.cg) * p.k;
  const auto floor_div = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); };
  p.g_column = floor_div(s.padding_w - (s.kw - 1) * s.dilation_w, s.stride_w);
  p.g_columns = floor_div(s.w - 1 + s.padding_w, s.stride_w) - p.g_column + 1;
  divide(p);

  const int64_t buffers = p.flat ? 0 : p.shared ? s.n * s.groups * p.bands : threads;
  float *memory = scratch(round_up(s.groups * p.group_floats, 16) + buffers * p.buffer_floats + 64);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.packed = memory;
  p.careful = reinterpret_cast<int *>(memory + round_up(s.groups * p.group_floats, 16));
  p.buffers = memory + round_up(s.groups * p.group_floats, 16) + 16;
  *p.careful = 0;
  parallel(s.groups * packed_channels(p.cg) / V, threads, &p, pack_gradient_task);
  if (p.shared) parallel(buffers, threads, &p, copy_gradient_task);
  parallel(p.bands * p.chunks * s.groups * (p.flat ? 1 : s.n), threads, &p, p.flat ? gradient_flat_task : gradient_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
