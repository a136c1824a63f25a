// Images of bytes: floats put on a grid, and max pooling.
#pragma once

#include "kernels.h"
#include "u8_simd.h"

namespace adderize {
namespace {

constexpr int64_t values_per_task = 32 * 1024;

struct GridPlan {
  int64_t count;
  const float *input;
  float steps, zero_point, levels;
  uint8_t *output;
};

void grid_task(const void *context, int64_t task, int) {
  const GridPlan &p = *static_cast<const GridPlan *>(context);
  const vec steps = all(p.steps), zero_point = all(p.zero_point), levels = all(p.levels);
  const float *x = p.input + task * values_per_task;
  uint8_t *out = p.output + task * values_per_task;
  const auto put = [&](int64_t i, int64_t lanes) {
    const vec q = nearest_integers(load(x + i, lanes) * steps) + zero_point;
    const vec inside = minimum(maximum(q, vec{}), levels);  // a NaN becomes 0
    store_bytes(out + i, __builtin_convertvector(inside, ivec), lanes);
  };
  const int64_t end = least(values_per_task, p.count - task * values_per_task), whole = end / V * V;
  for (int64_t i = 0; i < whole; i += V) put(i, V);
  if (whole < end) put(whole, end - whole);
}

int to_bytes(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output, int threads) {
  const GridPlan plan = {count, input, steps, zero_point, float(levels), output};
  parallel(ceil_div(count, values_per_task), threads, &plan, grid_task);
  return ADDERIZE_OK;
}

// out[i] = the largest of from[i + t * step] for t < taps, at least one. Vectors of B bytes, the last of which may overlap.
template <int B>
ADDERIZE_INLINE void maxima_by(const uint8_t *from, int64_t step, int64_t taps, int64_t bytes, uint8_t *out) {
  typedef uint8_t vector __attribute__((vector_size(B)));
  for (int64_t i = 0; i < bytes; i += B) {
    const int64_t at = least(i, bytes - B);
    vector top, next;
    memcpy(&top, from + at, B);
    for (int64_t t = 1; t < taps; ++t) {
      memcpy(&next, from + at + t * step, B);
      top = next > top ? next : top;
    }
    memcpy(out + at, &top, B);
  }
}

void maxima(const uint8_t *from, int64_t step, int64_t taps, int64_t bytes, uint8_t *out) {
  if (taps < 1) {
    memset(out, 0, size_t(bytes));
  } else if (bytes >= 4 * V) {
    maxima_by<4 * V>(from, step, taps, bytes, out);
  } else if (bytes >= 16) {
    maxima_by<16>(from, step, taps, bytes, out);
  } else {
    for (int64_t i = 0; i < bytes; ++i) {
      out[i] = from[i];
      for (int64_t t = 1; t < taps; ++t) out[i] = out[i] > from[i + t * step] ? out[i] : from[i + t * step];
    }
  }
}

// The taps of a window from `start` on, `dilation` apart, that lie in [0, size): the first and one past the last.
struct WindowTaps {
  int64_t first, end;
};
WindowTaps taps_inside(int64_t start, int64_t taps, int64_t dilation, int64_t size) {
  const int64_t first = start < 0 ? ceil_div(-start, dilation) : 0;
  return {first, most(least(taps, ceil_div(size - start, dilation)), first)};
}

// A task: an image, a band of output rows.
struct PoolPlan {
  adderize_shape s;
  const uint8_t *input;
  uint8_t *output;
  int64_t band_rows, bands, line_bytes;
  uint8_t *lines;  // of every worker
};

// Down the columns into a line of the image's width, then across it.
void pool_task(const void *context, int64_t task, int worker) {
  const PoolPlan &p = *static_cast<const PoolPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task / p.bands, first = task % p.bands * p.band_rows, end = least(first + p.band_rows, s.oh);
  const int64_t row = s.w * s.c;
  const uint8_t *image = p.input + n * s.h * row;
  uint8_t *line = p.lines + worker * p.line_bytes, *out = p.output + (n * s.oh + first) * s.ow * s.c;
  for (int64_t y = first; y < end; ++y) {
    const int64_t top = y * s.stride_h - s.padding_h;
    const WindowTaps down = taps_inside(top, s.kh, s.dilation_h, s.h);
    maxima(image + (top + down.first * s.dilation_h) * row, s.dilation_h * row, down.end - down.first, row, line);
    for (int64_t x = 0; x < s.ow; ++x, out += s.c) {
      const int64_t left = x * s.stride_w - s.padding_w;
      const WindowTaps across = taps_inside(left, s.kw, s.dilation_w, s.w);
      maxima(line + (left + across.first * s.dilation_w) * s.c, s.dilation_w * s.c, across.end - across.first, s.c, out);
    }
  }
}

int max_pool_u8(const adderize_shape &s, const uint8_t *input, uint8_t *output, int threads) {
  PoolPlan p = {};
  p.s = s;
  p.input = input;
  p.output = output;
  p.band_rows = most(s.oh / 8, 1);
  p.bands = ceil_div(s.oh, p.band_rows);
  p.line_bytes = round_up(s.w * s.c, 64);
  p.lines = reinterpret_cast<uint8_t *>(scratch(threads * p.line_bytes / int64_t(sizeof(float))));
  if (!p.lines) return ADDERIZE_OUT_OF_MEMORY;
  parallel(s.n * p.bands, threads, &p, pool_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
