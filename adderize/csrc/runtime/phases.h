// Which taps reach which positions: of the outputs, and of the inputs, which fall into stride_h * stride_w phases.
#pragma once

#include "adderize.h"
#include "runtime/bands.h"

namespace adderize { namespace {

// Along one axis position i sees taps t < taps at base + i * step + t * advance; outside of [0, size) lies the padding.
struct Axis {
  int64_t base, step, taps, advance, size;

  Span taps_inside(int64_t i) const { return inside(base + i * step, advance, taps, size); }
  // Those of `all` positions that see no tap in the padding.
  Span interior(Span all) const {
    const int64_t first = inside(base, step, all.last, size).first;
    const int64_t last = inside(base + (taps - 1) * advance, step, all.last, size).last;
    const Span span = {max(all.first, first), min(all.last, last)};
    return span.count() > 0 ? span : Span{all.first, all.first};
  }
};

// Of the forward pass: outputs see inputs.
inline Axis vertical_axis(const adderize_shape &s) { return {-s.padding_h, s.stride_h, s.kh, s.dilation_h, s.h}; }
inline Axis horizontal_axis(const adderize_shape &s) { return {-s.padding_w, s.stride_w, s.kw, s.dilation_w, s.w}; }

// Inputs offset, offset + stride, ... are reached by the same taps of the filter: last, last - back, ... Position i of `axis` is
// the i-th of these inputs and sees, tap by tap, outputs.
struct PhaseAxis {
  Axis axis;
  int64_t offset, stride, last, back;

  int64_t filter_tap(int64_t t) const { return last - t * back; }
  // The positions of the inputs of a span.
  Span positions(Span inputs) const {
    return {ceil_div(max(inputs.first - offset, 0), stride), ceil_div(max(inputs.last - offset, 0), stride)};
  }
};

// `seen` is the axis by which outputs see inputs, `outputs` their number.
inline PhaseAxis phase_of(int64_t offset, const Axis &seen, int64_t outputs) {
  PhaseAxis phase = {{0, 1, 0, 1, outputs}, offset, seen.step, -1, 1};
  Axis &axis = phase.axis;
  for (int64_t t = seen.taps - 1; t >= 0; --t) {
    const int64_t at = offset - seen.base - t * seen.advance;
    if (at % seen.step) continue;
    if (axis.taps == 0) {
      phase.last = t;
      axis.base = at / seen.step;
    } else if (axis.taps == 1) {
      phase.back = phase.last - t;
      axis.advance = at / seen.step - axis.base;
    }
    ++axis.taps;
  }
  return phase;
}

struct Phase {
  PhaseAxis y, x;
  int64_t before;  // taps of the phases before

  int64_t taps() const { return y.axis.taps * x.axis.taps; }
};

// body(phase) for every phase, in the order in which the filters of input gradients are packed.
template <class Body>
void each_phase(const adderize_shape &s, Body body) {
  int64_t before = 0;
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const PhaseAxis y = phase_of(b, vertical_axis(s), s.oh);
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase phase = {y, phase_of(a, horizontal_axis(s), s.ow), before};
      body(phase);
      before += phase.taps();
    }
  }
}

// body(y, x) for every tap of the filter, in that order.
template <class Body>
void each_tap_by_phase(const adderize_shape &s, Body body) {
  each_phase(s, [&](const Phase &phase) {
    for (int64_t i = 0; i < phase.y.axis.taps; ++i)
      for (int64_t j = 0; j < phase.x.axis.taps; ++j) body(phase.y.filter_tap(i), phase.x.filter_tap(j));
  });
}

// A stride as long as the padded input already leaves a single output: a longer one would only add empty phases.
inline adderize_shape with_short_strides(adderize_shape s) {
  s.stride_h = min(s.stride_h, s.h + 2 * s.padding_h);
  s.stride_w = min(s.stride_w, s.w + 2 * s.padding_w);
  return s;
}

// The outputs that rows of inputs reach.
inline Window gradient_window(const adderize_shape &s, Span rows) {
  const int64_t top = floor_div(rows.first + s.padding_h - (s.kh - 1) * s.dilation_h, s.stride_h);
  const int64_t bottom = floor_div(rows.last - 1 + s.padding_h, s.stride_h);
  const int64_t left = floor_div(s.padding_w - (s.kw - 1) * s.dilation_w, s.stride_w);
  const int64_t right = floor_div(s.w - 1 + s.padding_w, s.stride_w);
  return {top, bottom - top + 1, left, right - left + 1};
}

// The largest one of `rows` rows: its height depends on where they start, by one row at most.
inline Window largest_gradient_window(const adderize_shape &s, int64_t rows) {
  Window largest = gradient_window(s, {0, rows});
  for (int64_t y = 1; y < s.stride_h; ++y) largest.rows = max(largest.rows, gradient_window(s, {y, y + rows}).rows);
  return largest;
}

}}  // namespace adderize
