// The taps that reach an input, for the input gradients: with stride S the inputs fall into S * S phases.
#pragma once

#include "band.h"
#include "kernels.h"

namespace adderize {
namespace {

ADDERIZE_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// The inputs of a phase share their taps. One axis:
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

// The window of g that the input rows [y, y + rows) need.
Window gradient_window(const adderize_shape &s, int64_t y, int64_t rows) {
  const int64_t top = floor_div(y + s.padding_h - (s.kh - 1) * s.dilation_h, s.stride_h);
  const int64_t bottom = floor_div(y + rows - 1 + s.padding_h, s.stride_h);
  const int64_t left = floor_div(s.padding_w - (s.kw - 1) * s.dilation_w, s.stride_w);
  const int64_t right = floor_div(s.w - 1 + s.padding_w, s.stride_w);
  return {top, bottom - top + 1, left, right - left + 1};
}

// The tallest one of `rows` rows: its height depends on where they start, by one row at most.
int64_t tallest_gradient_window(const adderize_shape &s, int64_t rows) {
  int64_t tallest = 0;
  for (int64_t y = 0; y < s.stride_h; ++y) tallest = most(tallest, gradient_window(s, y, rows).rows);
  return tallest;
}

}  // namespace
}  // namespace adderize
