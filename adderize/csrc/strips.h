// The micro-kernels of channelwise.h: a strip of positions, one vector of lanes.
#pragma once

#include "tile.h"

namespace adderize {
namespace {

constexpr int widest_strip = 8;

struct Strip {
  const float *base;            // of the first position
  int64_t pixel;                // floats from one position to the next
  const int64_t *offsets;       // of every term
  int64_t terms;
  const float *w;               // [term][w_step]
  int64_t w_step;
};

constexpr int64_t flush_strip_every = 192;

template <int Q>
ADDERIZE_INLINE void flush_strip(vec *from, vec *to) {
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    to[q] += from[q];
    from[q] = vec{};
  }
}

template <int Q>
void distance_strip(const Strip &strip, float *out, int64_t out_pixel, int64_t lanes) {
  vec acc[Q] = {}, sum[Q] = {};
  const vec one = hidden_one();
  for (int64_t t = 0; t < strip.terms;) {
    if (t > 0) flush_strip<Q>(acc, sum);
    for (const int64_t end = least(t + flush_strip_every, strip.terms); t < end; ++t) {
      const vec filter = load(strip.w + t * strip.w_step);
      const float *x = strip.base + strip.offsets[t];
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) acc[q] = add(acc[q], absolute(load(x + q * strip.pixel) - filter), one);
    }
  }
  if (strip.terms > flush_strip_every) flush_strip<Q>(sum, acc);
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) store(out + q * out_pixel, -acc[q], lanes);
}

template <Clip kind, int Q>
void clip_strip(const Strip &strip, const float *in, float *out, int64_t pixel, int64_t lanes) {
  vec acc[Q] = {}, sum[Q] = {}, input[Q];
  const vec one = hidden_one();
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) input[q] = load(in + q * pixel, lanes);
  for (int64_t t = 0; t < strip.terms;) {
    if (t > 0) flush_strip<Q>(acc, sum);
    for (const int64_t end = least(t + flush_strip_every, strip.terms); t < end; ++t) {
      const vec filter = load(strip.w + t * strip.w_step);
      const float *g = strip.base + strip.offsets[t];
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        const vec d = filter - input[q];
        const vec clipped = kind == Clip::full ? clip(d, one) : sign(d);
        acc[q] = fma(load(g + q * strip.pixel), clipped, acc[q]);
      }
    }
  }
  if (strip.terms > flush_strip_every) flush_strip<Q>(sum, acc);
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) store(out + q * pixel, acc[q], lanes);
}

using DistanceStrip = void (*)(const Strip &, float *, int64_t, int64_t);
using ClipStrip = void (*)(const Strip &, const float *, float *, int64_t, int64_t);
constexpr DistanceStrip distance_strips[widest_strip + 1] = {
    nullptr,           distance_strip<1>, distance_strip<2>, distance_strip<3>, distance_strip<4>,
    distance_strip<5>, distance_strip<6>, distance_strip<7>, distance_strip<8>};
#define ADDERIZE_STRIPS(kind)                                                                                               \
  {                                                                                                                         \
    nullptr, clip_strip<kind, 1>, clip_strip<kind, 2>, clip_strip<kind, 3>, clip_strip<kind, 4>, clip_strip<kind, 5>,       \
        clip_strip<kind, 6>, clip_strip<kind, 7>, clip_strip<kind, 8>                                                       \
  }
constexpr ClipStrip clip_strips[2][widest_strip + 1] = {ADDERIZE_STRIPS(Clip::full), ADDERIZE_STRIPS(Clip::sign)};

}  // namespace
}  // namespace adderize
