// Depthwise layers, and groups of as many input as output channels that divide a vector: read and written in place, vectors along
// the channels of all groups.
#pragma once

#include "depthwise_line.h"
#include "pack.h"
#include "phases.h"

namespace adderize {
namespace {

// Along one axis, position i sees taps t < taps at i * step + t * advance + start of `size` source positions, zero outside of them.
struct Axis {
  int64_t taps, step, advance, start, size;

  Span inside(int64_t i) const {
    const int64_t at = i * step + start;
    const int64_t first = at < 0 ? ceil_div(-at, advance) : 0, last = at < size ? least(taps, (size - 1 - at) / advance + 1) : 0;
    return first < last ? Span{first, last} : Span{0, 0};
  }
  // The positions of `all` that see no tap outside.
  Span interior(Span all) const {
    const int64_t room = size - 1 - start - (taps - 1) * advance;
    const int64_t first = start < 0 ? ceil_div(-start, step) : 0, last = room < 0 ? 0 : room / step + 1;
    const Span span = {most(all.first, first), least(all.last, last)};
    return span.first < span.last ? span : Span{all.first, all.first};
  }
};

struct DepthwisePlan {
  adderize_shape s;
  const float *source, *input;  // source: X forward, g backward; input: X backward
  float *out;
  Filters filters;
  const LineKernels *kernels;
  bool forward;
  int gradient;
  int64_t channels, group, terms, packed_blocks;
  int64_t rows, columns, source_rows, source_columns;  // of the images that are written and read
  int64_t band_rows, bands;
  float *packed;
  int64_t *place;  // of each tap in `packed`
  int *careful;
};

// Positions that share their taps: all outputs forward, one phase of the inputs backward; strides in floats.
struct LanePlane {
  Axis y, x;
  const float *source, *in;
  float *out;
  const float *w;
  int64_t row, pixel;
};

void run_line(const DepthwisePlan &p, const LineTaps &taps, const Line &line, int64_t positions) {
  if (p.forward) return p.kernels->distance[positions](taps, line);
  if (p.gradient == ADDERIZE_GRADIENT_SIGN) {
    p.kernels->sign[positions](taps, line);
    return;
  }
  if (p.kernels->full[positions](taps, line) && !*p.careful) return;
  for (int64_t i = 0; i < positions; ++i)
    p.kernels->careful(taps, {line.source + i * taps.step, line.in + i * taps.pixel, line.out + i * taps.pixel, line.w});
}

// Positions that see the same taps: lines along the rows, or down a single column.
void run_rectangle(const DepthwisePlan &p, const LanePlane &plane, Span ys, Span xs) {
  if (ys.count() < 1 || xs.count() < 1) return;
  const int64_t source_row = p.source_columns * p.channels;
  LineTaps taps = {plane.y.taps, plane.x.taps, plane.y.inside(ys.first), plane.x.inside(xs.first), plane.y.advance * source_row,
                   plane.x.advance * p.channels, 0, 0, p.channels, p.terms};
  const bool down = xs.count() == 1;
  taps.step = down ? plane.y.step * source_row : plane.x.step * p.channels;
  taps.pixel = down ? plane.row : plane.pixel;
  const int64_t length = down ? ys.count() : xs.count(), lines = down ? 1 : ys.count(), parts = ceil_div(length, widest_line);
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * length / parts, count = (part + 1) * length / parts - first;
      const int64_t y = ys.first + (down ? first : i), x = xs.first + (down ? 0 : first), at = y * plane.row + x * plane.pixel;
      const float *source = plane.source + (y * plane.y.step + plane.y.start) * source_row + (x * plane.x.step + plane.x.start) * p.channels;
      run_line(p, taps, {source, plane.in + at, plane.out + at, plane.w}, count);
    }
}

// The interior as a whole; of the border, each row and column sees taps of its own.
void run_plane(const DepthwisePlan &p, const LanePlane &plane, Span ys, Span xs) {
  const Span inner_y = plane.y.interior(ys), inner_x = plane.x.interior(xs);
  const auto across = [&](Span rows) {
    run_rectangle(p, plane, rows, inner_x);
    for (int64_t x = xs.first; x < inner_x.first; ++x) run_rectangle(p, plane, rows, {x, x + 1});
    for (int64_t x = inner_x.last; x < xs.last; ++x) run_rectangle(p, plane, rows, {x, x + 1});
  };
  for (int64_t y = ys.first; y < inner_y.first; ++y) across({y, y + 1});
  across(inner_y);
  for (int64_t y = inner_y.last; y < ys.last; ++y) across({y, y + 1});
}

void depthwise_task(const void *context, int64_t task, int) {
  const DepthwisePlan &p = *static_cast<const DepthwisePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t n = task / p.bands, first = task % p.bands * p.band_rows, last = least(first + p.band_rows, p.rows);
  const int64_t image = n * p.rows * p.columns * p.channels;
  LanePlane plane = {};
  plane.source = p.source + n * p.source_rows * p.source_columns * p.channels;
  if (p.forward) {
    plane.y = {s.kh, s.stride_h, s.dilation_h, -s.padding_h, s.h};
    plane.x = {s.kw, s.stride_w, s.dilation_w, -s.padding_w, s.w};
    plane.out = p.out + image;
    plane.in = plane.out;
    plane.w = p.packed;
    plane.pixel = p.channels;
    plane.row = p.columns * p.channels;
    return run_plane(p, plane, {first, last}, {0, p.columns});
  }
  plane.w = p.packed;
  plane.pixel = s.stride_w * p.channels;
  plane.row = s.stride_h * p.columns * p.channels;
  for (int64_t b = 0; b < s.stride_h; ++b) {
    const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
    plane.y = {py.taps, 1, most(py.advance, 1), py.position, s.oh};
    const Span ys = {ceil_div(most(first - b, 0), s.stride_h), ceil_div(most(last - b, 0), s.stride_h)};
    for (int64_t a = 0; a < s.stride_w; ++a) {
      const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
      plane.x = {px.taps, 1, most(px.advance, 1), px.position, s.ow};
      plane.in = p.input + image + (b * p.columns + a) * p.channels;
      plane.out = p.out + image + (b * p.columns + a) * p.channels;
      run_plane(p, plane, ys, {0, ceil_div(most(p.columns - a, 0), s.stride_w)});
      plane.w += py.taps * px.taps * p.group * V;
    }
  }
}

// Order of the taps in `packed`: as the passes visit them.
void place_taps(const DepthwisePlan &p) {
  const adderize_shape &s = p.s;
  int64_t at = 0;
  if (p.forward)
    for (; at < s.kh * s.kw; ++at) p.place[at] = at;
  else
    for (int64_t b = 0; b < s.stride_h; ++b) {
      const Phase py = phase_of(b, s.kh, s.stride_h, s.padding_h, s.dilation_h);
      for (int64_t a = 0; a < s.stride_w; ++a) {
        const Phase px = phase_of(a, s.kw, s.stride_w, s.padding_w, s.dilation_w);
        for (int64_t i = 0; i < py.taps; ++i)
          for (int64_t j = 0; j < px.taps; ++j) p.place[(py.first - i * py.step) * s.kw + px.first - j * px.step] = at++;
      }
    }
}

// packed[block of lanes][term][lane]; a term is a tap and a channel of the lane's group on the other side.
void pack_depthwise_task(const void *context, int64_t task, int) {
  const DepthwisePlan &p = *static_cast<const DepthwisePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t *stride = p.filters.stride, taps = s.kh * s.kw, blocks = ceil_div(p.channels, V);
  vec trouble = {};
  for (int64_t block = task * p.packed_blocks; block < least((task + 1) * p.packed_blocks, blocks); ++block) {
    const int64_t lane = first_lane(block, p.channels);
    float *out = p.packed + block * p.terms * V;
    if (p.group == 1 && stride[3] == 1 && stride[2] == s.kw) {
      pack_lanes(p.filters.data + lane * stride[0], stride[0], V, taps, [&](int64_t tap) { return out + p.place[tap] * V; });
    } else {
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t k = 0; k < p.group; ++k) {
          float *to = out + (p.place[tap] * p.group + k) * V;
          const float *from = p.filters.data + tap / s.kw * stride[2] + tap % s.kw * stride[3];
          for (int64_t l = lane; l < lane + V; ++l) {
            const int64_t other = l / p.group * p.group + k, in_group = l % p.group;
            to[l - lane] = p.forward ? from[l * stride[0] + k * stride[1]] : from[other * stride[0] + in_group * stride[1]];
          }
        }
    }
    for (int64_t term = 0; term < p.terms; ++term) trouble = fma(load(out + term * V), vec{}, trouble);
  }
  if (!(total(trouble) == 0)) __atomic_store_n(p.careful, 1, __ATOMIC_RELAXED);
}

bool is_depthwise(const adderize_shape &s) {
  return s.c == s.cout && s.c >= V && s.groups > 1 && line_kernels_of(s.c / s.groups);
}

int run_depthwise(DepthwisePlan &p, int threads) {
  const adderize_shape &s = p.s;
  constexpr int64_t shortest_band = 4, longest_band = 16, pack_floats = 8192;
  p.channels = s.c;
  p.group = s.c / s.groups;
  p.terms = s.kh * s.kw * p.group;
  p.kernels = line_kernels_of(p.group);
  p.rows = p.forward ? s.oh : s.h;
  p.columns = p.forward ? s.ow : s.w;
  p.source_rows = p.forward ? s.h : s.oh;
  p.source_columns = p.forward ? s.w : s.ow;
  const int64_t wanted_rows = ceil_div(p.rows * s.n, wanted_tasks);
  p.band_rows = least(p.rows, least(longest_band, most(shortest_band, wanted_rows)));
  p.bands = ceil_div(p.rows, p.band_rows);

  const int64_t blocks = ceil_div(p.channels, V), packed = blocks * p.terms * V, place = round_up(2 * s.kh * s.kw, 16);
  float *memory = scratch(packed + place + 16);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.packed = memory;
  p.place = reinterpret_cast<int64_t *>(memory + packed);
  p.careful = reinterpret_cast<int *>(memory + packed + place);
  *p.careful = 0;
  place_taps(p);
  p.packed_blocks = ceil_div(pack_floats, p.terms * V);
  parallel(ceil_div(blocks, p.packed_blocks), threads, &p, pack_depthwise_task);
  parallel(s.n * p.bands, threads, &p, depthwise_task);
  return ADDERIZE_OK;
}

int depthwise_forward(const adderize_shape &s, const float *input, const Filters &filters, float *output, int threads) {
  DepthwisePlan p = {};
  p.s = s;
  p.source = input;
  p.out = output;
  p.filters = filters;
  p.forward = true;
  return run_depthwise(p, threads);
}

int depthwise_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out, int gradient,
                       int threads) {
  DepthwisePlan p = {};
  p.s = with_short_strides(s);
  p.source = grad;
  p.input = input;
  p.out = out;
  p.filters = filters;
  p.gradient = gradient;
  return run_depthwise(p, threads);
}

}  // namespace
}  // namespace adderize
