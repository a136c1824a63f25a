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
  float scale, zero_point, levels;
  uint8_t *output;
};

void grid_task(const void *context, int64_t task, int) {
  const GridPlan &p = *static_cast<const GridPlan *>(context);
  const vec scale = all(p.scale), zero_point = all(p.zero_point), levels = all(p.levels);
  const float *x = p.input + task * values_per_task;
  uint8_t *out = p.output + task * values_per_task;
  const auto put = [&](int64_t i, int64_t lanes) {
    const vec steps = nearest_integers(load(x + i, lanes) / scale) + zero_point;
    const vec inside = minimum(maximum(steps, vec{}), levels);  // a NaN becomes 0
    store_bytes(out + i, __builtin_convertvector(inside, ivec), lanes);
  };
  const int64_t end = least(values_per_task, p.count - task * values_per_task), whole = end / V * V;
  for (int64_t i = 0; i < whole; i += V) put(i, V);
  if (whole < end) put(whole, end - whole);
}

int to_bytes(int64_t count, const float *input, float scale, float zero_point, int levels, uint8_t *output, int threads) {
  const GridPlan plan = {count, input, scale, zero_point, float(levels), output};
  parallel(ceil_div(count, values_per_task), threads, &plan, grid_task);
  return ADDERIZE_OK;
}

// A task: an image, a band of output rows.
struct PoolPlan {
  adderize_shape s;
  const uint8_t *input;
  uint8_t *output;
  int64_t band_rows, bands, line_bytes;
  uint8_t *lines;  // of every worker
};

void raise_to(uint8_t *__restrict to, const uint8_t *__restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to[i] > from[i] ? to[i] : from[i];
}

// Down the columns into a line of the image's width, then across it.
void pool_task(const void *context, int64_t task, int worker) {
  const PoolPlan &p = *static_cast<const PoolPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task / p.bands, first = task % p.bands * p.band_rows, end = least(first + p.band_rows, s.oh);
  const int64_t row = s.w * s.c;
  const uint8_t *image = p.input + n * s.h * row;
  uint8_t *line = p.lines + worker * p.line_bytes, *out = p.output + (n * s.oh + first) * s.ow * s.c;
  for (int64_t y = first; y < end; ++y) {
    memset(line, 0, size_t(row));
    for (int64_t t = 0; t < s.kh; ++t) {
      const int64_t from = y * s.stride_h - s.padding_h + t * s.dilation_h;
      if (from >= 0 && from < s.h) raise_to(line, image + from * row, row);
    }
    for (int64_t x = 0; x < s.ow; ++x, out += s.c) {
      memset(out, 0, size_t(s.c));
      for (int64_t t = 0; t < s.kw; ++t) {
        const int64_t from = x * s.stride_w - s.padding_w + t * s.dilation_w;
        if (from >= 0 && from < s.w) raise_to(out, line + from * s.c, s.c);
      }
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
