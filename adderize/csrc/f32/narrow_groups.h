// Groups of a few channels that depthwise.h does not take: from a padded copy, in which a vector load finds what neighbouring lanes
// see.
#pragma once

#include "f32/lanes.h"
#include "f32/tile.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace adderize { namespace {

constexpr int64_t chunk_lanes = 4 * V;           // of a task
constexpr int widest_strip = few_tiles ? 2 : 8;  // positions
constexpr int64_t flush_strip_every = 192;
constexpr int64_t band_floats = 2 * window_floats;  // rows that two bands see are copied twice

struct NarrowPlan {
  LaneLayer layer;
  int64_t padded;  // lanes rounded up
  Parts bands, chunks;
  int64_t buffer_floats;
  float *packed, *buffers;  // [term][padded lanes]; a term is a tap, as the planes visit them, and a partner
  int64_t *offsets;
  int *careful;
};

// A strip of positions, one vector of lanes.
struct Strip {
  const float *base;       // of the first position
  int64_t pixel;           // floats from one position to the next
  const int64_t *offsets;  // of every term
  int64_t terms;
  const float *w;  // [term][w_step]
  int64_t w_step;
};

// sums[q][lane] = the sum of term(q, value, filter, sum) over all terms.
template <int Q, class Term>
ADDERIZE_INLINE void sum_strip(const Strip &strip, float *sums, Term term) {
  Accumulators<Q, flush_strip_every> registers;
  int64_t t = 0;
  do {
    for (const int64_t end = min(t + flush_strip_every, strip.terms); t < end; ++t) {
      const vec filter = load(strip.w + t * strip.w_step);
      const float *x = strip.base + strip.offsets[t];
      each<Q>(ADDERIZE_EACH(q) {
        vec &sum = registers.acc[q.value];
        sum = term(q, load(x + q.value * strip.pixel), filter, sum);
      });
    }
    registers.flush([&](int q) __attribute__((always_inline)) { return sums + q * V; });
  } while (t < strip.terms);
}

template <int Q>
void distance_strip(const Strip &strip, float *out, int64_t pixel, int64_t lanes) {
  alignas(64) float sums[Q * V];
  const vec one = hidden_one();
  sum_strip<Q>(strip, sums, [&](auto, vec x, vec filter, vec sum) __attribute__((always_inline)) {
    return add(sum, absolute(x - filter), one);
  });
  for (int q = 0; q < Q; ++q) store(out + q * pixel, -load(sums + q * V), lanes);
}

template <Clip kind, int Q>
void clip_strip(const Strip &strip, const float *in, float *out, int64_t pixel, int64_t lanes) {
  alignas(64) float sums[Q * V];
  const vec one = hidden_one();
  vec input[Q];
  each<Q>(ADDERIZE_EACH(q) { input[q.value] = load(in + q.value * pixel, lanes); });
  sum_strip<Q>(strip, sums, [&](auto q, vec g, vec filter, vec sum) __attribute__((always_inline)) {
    const vec d = filter - input[q.value];
    return fma(g, kind == Clip::full ? clip(d, one) : sign(d), sum);
  });
  for (int q = 0; q < Q; ++q) store(out + q * pixel, load(sums + q * V), lanes);
}

using DistanceStrip = void (*)(const Strip &, float *out, int64_t pixel, int64_t lanes);
using ClipStrip = void (*)(const Strip &, const float *in, float *out, int64_t pixel, int64_t lanes);
// [positions - 1]
constexpr auto distance_strips =
    table<DistanceStrip, widest_strip>([](auto q) -> DistanceStrip { return distance_strip<q.value + 1>; });
template <Clip kind>
constexpr auto clip_strips = table<ClipStrip, widest_strip>([](auto q) -> ClipStrip { return clip_strip<kind, q.value + 1>; });

// What a vector of lanes sees of a position: lane i its partner k at from + at[i] + k.
struct Sources {
  int64_t from, span;  // span: floats of all partners
  ivec at;
};

Sources sources_of(const LaneLayer &p, const Span &lanes) {
  const auto first_partner = [&](int64_t lane) { return lane / p.per * p.partners; };
  Sources s = {};
  s.from = first_partner(lanes.first);
  for (int64_t i = 0; i < lanes.count(); ++i) s.at[i] = int32_t(first_partner(lanes.first + i) - s.from);
  s.span = first_partner(lanes.last - 1) - s.from + p.partners;
  return s;
}

// out[partner][lane], reading no float past the last lane's.
ADDERIZE_INLINE void copy_sources(const Sources &s, const float *position, int64_t partners, int64_t width, float *out) {
  const float *from = position + s.from;
  if (pick_is_quick && s.span <= 2 * V) {
    const vec low = load(from, min(s.span, V)), high = s.span > V ? load(from + V, s.span - V) : low;
    ivec at = s.at;
    for (int64_t k = 0; k < partners; ++k, at += 1) store(out + k * width, pick(low, high, at));
  } else {
    for (int64_t k = 0; k < partners; ++k)
      for (int64_t i = 0; i < V; ++i) out[k * width + i] = from[s.at[i] + k];
  }
}

// Lanes of an image: out[position][partner][lane].
void copy_lanes(const LaneLayer &p, const float *image, const Window &window, const Span &lanes, float *out) {
  const int64_t h = p.source_rows, w = p.source_columns, count = lanes.count(), width = round_up(count, V);
  if (p.partners == 1 && p.per == 1 && count == width) {
    copy_window({image + lanes.first, h, w, count, p.channels}, window, out);
    return;
  }
  Sources sources[chunk_lanes / V];
  for (int64_t lane = 0; lane < width; lane += V)
    sources[lane / V] = sources_of(p, {lanes.first + lane, min(lanes.first + lane + V, lanes.last)});
  for (int64_t i = 0; i < window.rows; ++i)
    for (int64_t j = 0; j < window.columns; ++j, out += p.partners * width) {
      const int64_t y = window.row + i, x = window.column + j;
      if (y < 0 || y >= h || x < 0 || x >= w) {
        memset(out, 0, size_t(p.partners * width) * sizeof(float));
        continue;
      }
      const float *position = image + (y * w + x) * p.channels;
      for (int64_t lane = 0; lane < width; lane += V) copy_sources(sources[lane / V], position, p.partners, width, out + lane);
    }
}

// See careful_position: some lanes of position (y, x) of a plane.
void careful_lanes(const LaneLayer &p, const float *image, const LanePlane &plane, int64_t y, int64_t x, const Span &lanes,
                   const float *w) {
  const Axis &vertical = plane.y, &horizontal = plane.x;
  const int64_t padded = round_up(p.lanes, V), at = plane.first + y * plane.row + x * plane.pixel + lanes.first;
  const vec in = load(p.input + at, lanes.count());
  const Span rows = vertical.taps_inside(y), columns = horizontal.taps_inside(x);
  vec acc = {};
  for (int64_t i = rows.first; i < rows.last; ++i)
    for (int64_t j = columns.first; j < columns.last; ++j) {
      const int64_t oy = vertical.base + y * vertical.step + i * vertical.advance;
      const int64_t ox = horizontal.base + x * horizontal.step + j * horizontal.advance;
      const float *g = image + (oy * p.source_columns + ox) * p.channels;
      const float *filters = w + (i * horizontal.taps + j) * p.partners * padded;
      for (int64_t k = 0; k < p.partners;) {
        vec part = {};
        for (const int64_t end = min(k + flush_strip_every, p.partners); k < end; ++k) {
          vec weight = {};
          for (int64_t l = 0; l < lanes.count(); ++l) weight[l] = g[(lanes.first + l) / p.per * p.partners + k];
          part = fma(weight, clip_keeping_nan(load(filters + k * padded) - in), part);
        }
        acc += part;
      }
    }
  store(p.out + at, acc, lanes.count());
}

// Whether one of q positions holds something that is not finite.
bool is_unfinished(const float *in, int64_t pixel, int64_t q, int64_t lanes) {
  vec trouble = {};
  for (int64_t i = 0; i < q; ++i) {
    const vec v = load(in + i * pixel, lanes);
    trouble += v - v;
  }
  return !(total(trouble) == 0);
}

void narrow_task(const NarrowPlan &p, int64_t number, int worker) {
  const LaneLayer &layer = p.layer;
  TaskIndex index = {number};
  const Span lanes = p.chunks[index.take(p.chunks.count)], rows = p.bands[index.take(p.bands.count)];
  const int64_t n = index.rest, width = round_up(lanes.count(), V), position = layer.partners * width;
  const float *image = layer.source + n * layer.source_rows * layer.source_columns * layer.channels;
  const Window window = layer.forward ? forward_window(layer.s, rows) : gradient_window(layer.s, rows);
  float *buffer = p.buffers + worker * p.buffer_floats;
  int64_t *offsets = p.offsets + worker * layer.terms();
  copy_lanes(layer, image, window, lanes, buffer);

  each_lane_plane(layer, n, rows, [&](const LanePlane &plane, Span ys, Span xs) {
    const Axis &vertical = plane.y, &horizontal = plane.x;
    int64_t terms = 0;
    for (int64_t i = 0; i < vertical.taps; ++i)
      for (int64_t j = 0; j < horizontal.taps; ++j)
        for (int64_t k = 0; k < layer.partners; ++k)
          offsets[terms++] = (i * vertical.advance * window.columns + j * horizontal.advance) * position + k * width;
    const int64_t strips = ceil_div(xs.count(), widest_strip);
    for (int64_t y = ys.first; y < ys.last; ++y)
      for (int64_t lane = 0; lane < lanes.count(); lane += V)
        for (int64_t i = 0; i < strips; ++i) {
          const Span share = share_of(xs.count(), strips, i);
          const int64_t q = share.count(), here = lanes.first + lane, count = min(V, lanes.count() - lane);
          const int64_t row = vertical.base + y * vertical.step - window.row;
          const int64_t column = horizontal.base + share.first * horizontal.step - window.column;
          const int64_t at = plane.first + y * plane.row + share.first * plane.pixel + here;
          const float *w = p.packed + plane.taps * layer.partners * p.padded + here;
          const Strip strip = {
              buffer + (row * window.columns + column) * position + lane, horizontal.step * position, offsets, terms, w, p.padded};
          if (layer.forward)
            distance_strips[q - 1](strip, layer.out + at, plane.pixel, count);
          else if (layer.gradient == ADDERIZE_GRADIENT_SIGN)
            clip_strips<Clip::sign>[q - 1](strip, layer.input + at, layer.out + at, plane.pixel, count);
          else if (*p.careful || is_unfinished(layer.input + at, plane.pixel, q, count))
            for (int64_t x = share.first; x < share.last; ++x) careful_lanes(layer, image, plane, y, x, {here, here + count}, w);
          else
            clip_strips<Clip::full>[q - 1](strip, layer.input + at, layer.out + at, plane.pixel, count);
        }
  });
}

void pack_narrow(const NarrowPlan &p) {
  float *out = p.packed, trouble = 0;
  each_lane_tap(p.layer, [&](int64_t y, int64_t x) {
    for (int64_t k = 0; k < p.layer.partners; ++k)
      for (int64_t l = 0; l < p.padded; ++l, ++out) {
        *out = l < p.layer.lanes ? p.layer.filter(p.layer.filters.tap(y, x), l, k) : 0.0f;
        trouble += *out - *out;
      }
  });
  *p.careful = !(trouble == 0);
}

void run_narrow(const LaneLayer &layer, int threads) {
  const adderize_shape &s = layer.s;
  NarrowPlan p = {};
  p.layer = layer;
  p.padded = round_up(layer.lanes, V);
  p.chunks = parts_of(layer.lanes, chunk_lanes);
  const auto floats = [&](int64_t rows) {
    const Window window = layer.forward ? forward_window(s, {0, rows}) : largest_gradient_window(s, rows);
    return round_up(window.rows * window.columns * layer.partners * min(chunk_lanes, p.padded), 16);
  };
  const int64_t wanted = ceil_div(wanted_tasks, s.n * p.chunks.count);
  p.bands = bands_of(layer.rows, band_floats, min(wanted, ceil_div(layer.rows, 4)), floats);
  p.buffer_floats = floats(p.bands.size);
  allocate([&](Arena &arena) {
    arena.take(p.packed, layer.terms() * p.padded);
    arena.take(p.offsets, threads * layer.terms());
    arena.take(p.careful, 1);
    arena.take(p.buffers, threads * p.buffer_floats);
  });
  pack_narrow(p);
  parallel(s.n * p.bands.count * p.chunks.count, threads, [&](int64_t number, int worker) { narrow_task(p, number, worker); });
}

}}  // namespace adderize
