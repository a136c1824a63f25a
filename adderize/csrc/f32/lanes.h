// Layers whose vectors lie along the channels of all groups: what is written, "lanes", and what they see of the other side.
#pragma once

#include "f32/window.h"
#include "kernels.h"
#include "runtime/phases.h"

namespace adderize { namespace {

// A lane is an output channel (forward) or an input channel (gradient). Lane l sees, under every tap, the channels
// l / per * partners + k, k < partners, of the source.
struct LaneLayer {
  adderize_shape s;
  const float *source, *input;  // source: X forward, g backward; input: X backward
  float *out;
  Filters filters;
  bool forward;
  int gradient;
  int64_t lanes, per, channels, partners;              // channels: of the source; per and partners: of a group
  int64_t rows, columns, source_rows, source_columns;  // of the images that are written and read

  int64_t terms() const { return s.kh * s.kw * partners; }
  float filter(const float *tap, int64_t lane, int64_t k) const {
    const int64_t *stride = filters.stride;
    return forward ? tap[lane * stride[0] + k * stride[1]] : tap[(lane / per * partners + k) * stride[0] + lane % per * stride[1]];
  }
};

LaneLayer forward_lanes(const adderize_shape &s, const float *input, const Filters &filters, float *output) {
  return {s, input, nullptr, output, filters, true, 0, s.cout, s.cout / s.groups, s.c, s.c / s.groups, s.oh, s.ow, s.h, s.w};
}
LaneLayer gradient_lanes(const adderize_shape &shape, const float *grad, const float *input, const Filters &filters, float *out,
                         int gradient) {
  const adderize_shape s = with_short_strides(shape);
  return {s, grad, input, out, filters, false, gradient, s.c, s.c / s.groups, s.cout, s.cout / s.groups, s.h, s.w, s.oh, s.ow};
}

// body(y, x) for every tap, in the order in which the planes below visit them.
template <class Body>
void each_lane_tap(const LaneLayer &p, Body body) {
  if (!p.forward) return each_tap_by_phase(p.s, body);
  for (int64_t y = 0; y < p.s.kh; ++y)
    for (int64_t x = 0; x < p.s.kw; ++x) body(y, x);
}

// Positions that share their taps: all outputs forward, one phase of the inputs backward. `first` is their first one in what is
// written, strides in floats; `taps` is their first one among all.
struct LanePlane {
  Axis y, x;
  int64_t first, row, pixel, taps;
};

// body(plane, ys, xs) for the positions of some rows of image n.
template <class Body>
void each_lane_plane(const LaneLayer &p, int64_t n, Span rows, Body body) {
  const adderize_shape &s = p.s;
  const int64_t row = p.columns * p.lanes, image = n * p.rows * row;
  if (p.forward) {
    const LanePlane plane = {vertical_axis(s), horizontal_axis(s), image, row, p.lanes, 0};
    return body(plane, rows, Span{0, p.columns});
  }
  each_phase(s, [&](const Phase &phase) {
    const int64_t first = image + phase.y.offset * row + phase.x.offset * p.lanes;
    const LanePlane plane = {phase.y.axis, phase.x.axis, first, s.stride_h * row, s.stride_w * p.lanes, phase.before};
    body(plane, phase.y.positions(rows), phase.x.positions({0, p.columns}));
  });
}

}}  // namespace adderize
