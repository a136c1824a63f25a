// Groups of a few channels that depthwise.h does not take: vectors along the channels of all groups, from a padded copy.
#pragma once

#include "phases.h"
#include "strips.h"

namespace adderize {
namespace {

constexpr int64_t chunk_lanes = 4 * V;  // channels of a task

// A lane is an output channel (forward) or an input channel (gradient). Lane l sees, for every tap, the channels
// l / per * partners + j, j < partners, of the other side; they are laid out [position][j][lane] so that a vector load finds them.
struct LanePlan {
  adderize_shape s;
  const float *source, *input;  // source: X forward, g backward; input: X backward
  float *out;
  Filters filters;
  int gradient;
  int64_t lanes, per, partners, channels;  // channels: of the source
  int64_t padded, terms;                   // lanes rounded up; taps * partners
  int64_t band_rows, bands, chunks, columns, buffer_floats;
  float *packed, *buffers;
  int64_t *offsets;
  int *careful;
};

void copy_lanes(const LanePlan &p, int64_t n, int64_t h, int64_t w, const Window &window, int64_t first, int64_t lanes, float *out) {
  const int64_t width = round_up(lanes, V);
  const float *image = p.source + n * h * w * p.channels;
  if (p.partners == 1 && p.per == 1 && lanes == width) {
    copy_window({image + first, h, w, lanes, p.channels}, window, out);
    return;
  }
  int64_t from[chunk_lanes];
  for (int64_t i = 0; i < lanes; ++i) from[i] = (first + i) / p.per * p.partners;
  for (int64_t i = 0; i < window.rows; ++i)
    for (int64_t j = 0; j < window.columns; ++j, out += p.partners * width) {
      const int64_t y = window.row + i, x = window.column + j;
      if (y < 0 || y >= h || x < 0 || x >= w) {
        memset(out, 0, size_t(p.partners * width) * sizeof(float));
        continue;
      }
      const float *position = image + (y * w + x) * p.channels;
      for (int64_t k = 0; k < p.partners; ++k) {
        for (int64_t l = 0; l < lanes; ++l) out[k * width + l] = position[from[l] + k];
        for (int64_t l = lanes; l < width; ++l) out[k * width + l] = 0;
      }
    }
}

void lane_forward_task(const void *context, int64_t task, int worker) {
  const LanePlan &p = *static_cast<const LanePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t chunk = task % p.chunks, band = task / p.chunks % p.bands, n = task / (p.chunks * p.bands);
  const int64_t first = chunk * chunk_lanes, lanes = least(chunk_lanes, p.lanes - first), width = round_up(lanes, V);
  const int64_t y0 = band * p.band_rows, rows = least(p.band_rows, s.oh - y0);
  float *buffer = p.buffers + worker * p.buffer_floats;
  const Window window = {y0 * s.stride_h - s.padding_h, (rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1, -s.padding_w, p.columns};
  copy_lanes(p, n, s.h, s.w, window, first, lanes, buffer);

  const int64_t position = p.partners * width, strips = ceil_div(s.ow, widest_strip);
  int64_t *offsets = p.offsets + worker * p.terms;
  for (int64_t t = 0; t < p.terms; ++t) {
    const int64_t tap = t / p.partners, y = tap / s.kw * s.dilation_h, x = tap % s.kw * s.dilation_w;
    offsets[t] = (y * p.columns + x) * position + t % p.partners * width;
  }
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t lane = 0; lane < lanes; lane += V)
      for (int64_t i = 0; i < strips; ++i) {
        const int64_t x = i * s.ow / strips, q = (i + 1) * s.ow / strips - x;
        const Strip strip = {buffer + (y * s.stride_h * p.columns + x * s.stride_w) * position + lane, s.stride_w * position, offsets,
                             p.terms, p.packed + first + lane, p.padded};
        distance_strips[q](strip, p.out + ((n * s.oh + y0 + y) * s.ow + x) * s.cout + first + lane, s.cout, least(V, lanes - lane));
      }
}

// See careful_position: one position, one vector of lanes.
void careful_lanes(const LanePlan &p, int64_t n, int64_t y, int64_t x, int64_t lane, const float *w, float *out) {
  const adderize_shape &s = p.s;
  const int64_t b = y % s.stride_h, a = x % s.stride_w, lanes = least(V, p.lanes - lane);
  const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
  const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
  const vec in = load(p.input + ((n * s.h + y) * s.w + x) * s.c + lane, lanes);
  vec acc = {};
  for (int64_t i = 0; i < py.taps; ++i)
    for (int64_t j = 0; j < px.taps; ++j, w += p.partners * p.padded) {
      const int64_t oy = py.position + i * py.advance + (y - b) / s.stride_h, ox = px.position + j * px.advance + (x - a) / s.stride_w;
      if (oy < 0 || oy >= s.oh || ox < 0 || ox >= s.ow) continue;
      const float *g = p.source + ((n * s.oh + oy) * s.ow + ox) * s.cout;
      for (int64_t k = 0; k < p.partners;) {
        vec part = {};
        for (const int64_t end = least(k + flush_strip_every, p.partners); k < end; ++k) {
          vec weight = {};
          for (int64_t l = 0; l < lanes; ++l) weight[l] = g[(lane + l) / p.per * p.partners + k];
          part = fma(weight, clip_keeping_nan(load(w + k * p.padded) - in), part);
        }
        acc += part;
      }
    }
  store(out, acc, lanes);
}

void lane_strip(const LanePlan &p, const Strip &strip, int64_t n, int64_t y, int64_t x, int64_t q, int64_t lane) {
  const adderize_shape &s = p.s;
  const int64_t at = ((n * s.h + y) * s.w + x) * s.c + lane, pixel = s.stride_w * s.c, lanes = least(V, p.lanes - lane);
  if (p.gradient == ADDERIZE_GRADIENT_FULL) {
    vec trouble = {};
    for (int64_t i = 0; i < q; ++i) {
      const vec v = load(p.input + at + i * pixel, lanes);
      trouble += v - v;
    }
    if (*p.careful || !(total(trouble) == 0)) {
      for (int64_t i = 0; i < q; ++i) careful_lanes(p, n, y, x + i * s.stride_w, lane, strip.w, p.out + at + i * pixel);
      return;
    }
  }
  clip_strips[p.gradient][q](strip, p.input + at, p.out + at, pixel, lanes);
}

void lane_gradient_task(const void *context, int64_t task, int worker) {
  const LanePlan &p = *static_cast<const LanePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t chunk = task % p.chunks, band = task / p.chunks % p.bands, n = task / (p.chunks * p.bands);
  const int64_t first = chunk * chunk_lanes, lanes = least(chunk_lanes, p.lanes - first), width = round_up(lanes, V);
  const int64_t y0 = band * p.band_rows, y1 = least(y0 + p.band_rows, s.h);
  float *buffer = p.buffers + worker * p.buffer_floats;
  const Window window = gradient_window(s, y0, y1 - y0);
  copy_lanes(p, n, s.oh, s.ow, window, first, lanes, buffer);

  const int64_t position = p.partners * width;
  int64_t *offsets = p.offsets + worker * p.terms, skipped = 0;
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      const int64_t terms = py.taps * px.taps * p.partners;
      for (int64_t t = 0; t < terms; ++t) {
        const int64_t tap = t / p.partners, ty = tap / most(px.taps, 1), tx = tap % most(px.taps, 1);
        offsets[t] = (ty * py.advance * p.columns + tx * px.advance) * position + t % p.partners * width;
      }
      const int64_t columns = a < s.w ? ceil_div(s.w - a, s.stride_w) : 0, strips = ceil_div(columns, widest_strip);
      for (int64_t y = y0 + ((b - y0) % s.stride_h + s.stride_h) % s.stride_h; y < y1; y += s.stride_h)
        for (int64_t lane = 0; lane < lanes; lane += V)
          for (int64_t i = 0; i < strips; ++i) {
            const int64_t x = i * columns / strips, q = (i + 1) * columns / strips - x;
            const int64_t row = py.position + (y - b) / s.stride_h - window.row, column = px.position + x - window.column;
            const Strip strip = {buffer + (row * p.columns + column) * position + lane, position, offsets, terms,
                                 p.packed + skipped * p.padded + first + lane, p.padded};
            lane_strip(p, strip, n, y, a + x * s.stride_w, q, first + lane);
          }
      skipped += terms;
    }
  }
}

// packed[term][lane]
void pack_lanes_forward(const LanePlan &p) {
  const adderize_shape &s = p.s;
  const int64_t *stride = p.filters.stride;
  for (int64_t t = 0; t < p.terms; ++t) {
    const int64_t tap = t / p.partners;
    const float *from = p.filters.data + t % p.partners * stride[1] + tap / s.kw * stride[2] + tap % s.kw * stride[3];
    for (int64_t l = 0; l < p.padded; ++l) p.packed[t * p.padded + l] = l < p.lanes ? from[l * stride[0]] : 0.0f;
  }
}

void pack_lanes_gradient(const LanePlan &p) {
  const adderize_shape &s = p.s;
  const int64_t *stride = p.filters.stride;
  float *out = p.packed, trouble = 0;
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      for (int64_t t = 0; t < py.taps * px.taps; ++t) {
        const float *tap = p.filters.data + (py.first - t / px.taps * py.step) * stride[2] + (px.first - t % px.taps * px.step) * stride[3];
        for (int64_t k = 0; k < p.partners; ++k)
          for (int64_t l = 0; l < p.padded; ++l, ++out) {
            *out = l < p.lanes ? tap[(l / p.per * p.partners + k) * stride[0] + l % p.per * stride[1]] : 0.0f;
            trouble += *out - *out;
          }
      }
    }
  }
  *p.careful = !(trouble == 0);
}

// rows_floats(rows): floats of the copy for that many rows of the result.
template <class Floats>
void divide_lanes(LanePlan &p, int64_t height, Floats rows_floats) {
  p.band_rows = height;
  while (p.band_rows > 1 && rows_floats(p.band_rows) > band_floats / 2) --p.band_rows;
  p.chunks = ceil_div(p.lanes, chunk_lanes);
  p.bands = ceil_div(height, p.band_rows);
  if (p.s.n * p.chunks * p.bands < wanted_tasks)
    p.bands = most(p.bands, least(ceil_div(wanted_tasks, p.s.n * p.chunks), ceil_div(height, 4)));
  p.band_rows = ceil_div(height, p.bands);
  p.bands = ceil_div(height, p.band_rows);
  p.buffer_floats = round_up(rows_floats(p.band_rows), 16);
}

bool lane_memory(LanePlan &p, int threads) {
  const int64_t packed = round_up(p.terms * p.padded, 16), offsets = round_up(2 * p.terms * threads, 16);
  float *memory = scratch(packed + offsets + 16 + threads * p.buffer_floats);
  if (!memory) return false;
  p.packed = memory;
  p.offsets = reinterpret_cast<int64_t *>(memory + packed);
  p.careful = reinterpret_cast<int *>(memory + packed + offsets);
  p.buffers = memory + packed + offsets + 16;
  return true;
}

int lane_forward(const adderize_shape &s, const float *input, const Filters &filters, float *output, int threads) {
  LanePlan p = {};
  p.s = s;
  p.source = input;
  p.out = output;
  p.filters = filters;
  p.lanes = s.cout;
  p.per = s.cout / s.groups;
  p.partners = s.c / s.groups;
  p.channels = s.c;
  p.padded = round_up(p.lanes, V);
  p.terms = s.kh * s.kw * p.partners;
  p.columns = (s.ow - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
  divide_lanes(p, s.oh, [&](int64_t rows) {
    return ((rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1) * p.columns * p.partners * least(chunk_lanes, p.padded);
  });
  if (!lane_memory(p, threads)) return ADDERIZE_OUT_OF_MEMORY;
  pack_lanes_forward(p);
  parallel(s.n * p.bands * p.chunks, threads, &p, lane_forward_task);
  return ADDERIZE_OK;
}

int lane_gradient(const adderize_shape &shape, const float *grad, const float *input, const Filters &filters, float *out, int gradient,
                  int threads) {
  LanePlan p = {};
  const adderize_shape &s = p.s;
  p.s = with_short_strides(shape);
  p.source = grad;
  p.input = input;
  p.out = out;
  p.filters = filters;
  p.gradient = gradient;
  p.lanes = s.c;
  p.per = s.c / s.groups;
  p.partners = s.cout / s.groups;
  p.channels = s.cout;
  p.padded = round_up(p.lanes, V);
  p.terms = s.kh * s.kw * p.partners;
  p.columns = gradient_window(s, 0, 1).columns;
  divide_lanes(p, s.h, [&](int64_t rows) {
    return tallest_gradient_window(s, rows) * p.columns * p.partners * least(chunk_lanes, p.padded);
  });
  if (!lane_memory(p, threads)) return ADDERIZE_OUT_OF_MEMORY;
  pack_lanes_gradient(p);
  parallel(s.n * p.bands * p.chunks, threads, &p, lane_gradient_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
