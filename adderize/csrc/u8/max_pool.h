// Max pooling of bytes.
#pragma once

#include "runtime/phases.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

// out[i] = the largest of from[i + t * step] for t < taps, at least one. Vectors of B bytes, the last of which may overlap.
template <int B>
ADDERIZE_INLINE void maxima_by(const uint8_t *from, int64_t step, int64_t taps, int64_t bytes, uint8_t *out) {
  typedef uint8_t vector __attribute__((vector_size(B)));
  for (int64_t i = 0; i < bytes; i += B) {
    const int64_t at = min(i, bytes - B);
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
    for (int64_t i = 0; i < bytes; ++i) maxima_by<1>(from + i, step, taps, 1, out + i);
  }
}

// A task: an image, a band of output rows; down the columns into a line of the image's width, then across it.
void max_pool_u8(const adderize_shape &s, const uint8_t *input, uint8_t *output, int threads) {
  const Axis vertical = vertical_axis(s), horizontal = horizontal_axis(s);
  const Parts bands = parts_of(s.oh, max(s.oh / 8, 1));
  const int64_t row = s.w * s.c, line_bytes = round_up(row, 64);
  uint8_t *lines = nullptr;  // of every worker
  allocate([&](Arena &arena) { arena.take(lines, threads * line_bytes); });
  parallel(s.n * bands.count, threads, [&](int64_t number, int worker) {
    TaskIndex index = {number};
    const Span rows = bands[index.take(bands.count)];
    const uint8_t *image = input + index.rest * s.h * row;
    uint8_t *line = lines + worker * line_bytes, *out = output + (index.rest * s.oh + rows.first) * s.ow * s.c;
    for (int64_t y = rows.first; y < rows.last; ++y) {
      const Span down = vertical.taps_inside(y);
      const int64_t top = vertical.base + y * s.stride_h + down.first * s.dilation_h;
      maxima(image + top * row, s.dilation_h * row, down.count(), row, line);
      for (int64_t x = 0; x < s.ow; ++x, out += s.c) {
        const Span across = horizontal.taps_inside(x);
        const int64_t left = horizontal.base + x * s.stride_w + across.first * s.dilation_w;
        maxima(line + left * s.c, s.dilation_w * s.c, across.count(), s.c, out);
      }
    }
  });
}

}}  // namespace adderize
