// The micro-kernels of depthwise layers and small groups: a line of positions, all channels, read and written in place.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

constexpr int widest_line = 6;  // positions

struct Span {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// What the positions of a line have in common; strides in floats.
struct LineTaps {
  int64_t rows, columns;
  Span y, x;                     // those inside the source
  int64_t row, column;           // from one tap to the next in the source
  int64_t step, pixel;           // from one position to the next in the source and in the output
  int64_t channels, terms;       // terms: of all filters of a lane
};

struct Line {
  const float *source, *in;
  float *out;
  const float *w;
};

// Lane l becomes channel k of lane l's group of P.
template <int P, int K>
ADDERIZE_INLINE vec spread(vec v) {
  if constexpr (P == 1) {
    return v;
  } else {
#if defined(__GNUC__) && !defined(__clang__)
    ivec from;
    for (int i = 0; i < V; ++i) from[i] = i / P * P + K;
    return __builtin_shuffle(v, from);
#else
    vec out;
    for (int i = 0; i < V; ++i) out[i] = v[i / P * P + K];
    return out;
#endif
  }
}

// The last vector of lanes overlaps the one before it: none is partial.
ADDERIZE_INLINE int64_t first_lane(int64_t block, int64_t channels) { return least(block * V, channels - V); }

// Walks the positions of a line through the taps of a row. Three neighbours share a base register.
template <int Q>
struct LineWalk {
  static constexpr int bases = (Q + 2) / 3;
  const char *base[bases];
  int64_t step, column;

  ADDERIZE_INLINE LineWalk(const float *from, const LineTaps &taps) : step(taps.step * 4), column(taps.column * 4) {
    for (int i = 0; i < bases; ++i) base[i] = reinterpret_cast<const char *>(from) + 3 * i * step;
    asm("" : "+r"(step), "+r"(column));
  }
  ADDERIZE_INLINE vec value(int q) const { return load(reinterpret_cast<const float *>(base[q / 3] + q % 3 * step)); }
  ADDERIZE_INLINE void advance() {
#pragma GCC unroll 8
    for (int i = 0; i < bases; ++i) {
      base[i] += column;
      asm("" : "+r"(base[i]));
    }
  }
};

// A long sum in one accumulator loses digits: its parts meet in the output.
constexpr int64_t flush_line_every = 192;

template <int Q>
struct LineSums {
  vec acc[Q] = {};
  float *out;
  int64_t pixel, room = flush_line_every;
  bool flushed = false;

  ADDERIZE_INLINE LineSums(float *at, int64_t distance) : out(at), pixel(distance) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) __builtin_prefetch(out + q * pixel, 1);
  }
  ADDERIZE_INLINE void flush() {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      float *to = out + q * pixel;
      store(to, flushed ? load(to) + acc[q] : acc[q]);
      acc[q] = vec{};
    }
    flushed = true;
    room = flush_line_every;
  }
  ADDERIZE_INLINE void count(int terms) {
    if (__builtin_expect((room -= terms) <= 0, 0)) flush();
  }
};

// The distances of the taps in the padding.
template <int P>
vec padded_distances(const LineTaps &taps, const float *w) {
  vec sum = {};
  for (int64_t y = 0; y < taps.rows; ++y)
    for (int64_t x = 0; x < taps.columns; ++x, w += P * V)
      if (y < taps.y.first || y >= taps.y.last || x < taps.x.first || x >= taps.x.last)
        for (int k = 0; k < P; ++k) sum -= absolute(load(w + k * V));
  return sum;
}

template <int P, int Q>
void distance_line(const LineTaps &line_taps, const Line &line) {
  const LineTaps taps = line_taps;
  const vec one = hidden_one();
  const int64_t blocks = ceil_div(taps.channels, V);
  const bool padded = taps.y.count() < taps.rows || taps.x.count() < taps.columns;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t lane = first_lane(block, taps.channels);
    const float *w = line.w + block * taps.terms * V;
    LineSums<Q> sums(line.out + lane, taps.pixel);
    if (padded) {
      sums.acc[0] = padded_distances<P>(taps, w);
#pragma GCC unroll 8
      for (int q = 1; q < Q; ++q) sums.acc[q] = sums.acc[0];
    }
    for (int64_t y = taps.y.first; y < taps.y.last; ++y) {
      LineWalk<Q> walk(line.source + lane + y * taps.row + taps.x.first * taps.column, taps);
      const float *filters = w + (y * taps.columns + taps.x.first) * P * V;
      for (int64_t left = taps.x.count(); left > 0; --left, walk.advance(), filters += P * V) {
        each<P>(ADDERIZE_EACH(k) {
          constexpr int K = decltype(k)::value;
          const vec filter = load(filters + K * V);
#pragma GCC unroll 8
          for (int q = 0; q < Q; ++q) sums.acc[q] = subtract_product(sums.acc[q], absolute(spread<P, K>(walk.value(q)) - filter), one);
        });
        sums.count(P);
      }
    }
    sums.flush();
  }
}

enum class Lanes { full, sign, careful };

// False where an input is not finite: the full clip loses NaN, the careful one keeps it.
template <Lanes kind, int P, int Q>
bool clip_line(const LineTaps &line_taps, const Line &line) {
  const LineTaps taps = line_taps;
  const vec one = hidden_one();
  const int64_t blocks = ceil_div(taps.channels, V);
  vec trouble = {};
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t lane = first_lane(block, taps.channels);
    const float *w = line.w + block * taps.terms * V;
    LineSums<Q> sums(line.out + lane, taps.pixel);
    vec input[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      input[q] = load(line.in + lane + q * taps.pixel);
      trouble = fma(input[q], vec{}, trouble);
    }
    for (int64_t y = taps.y.first; y < taps.y.last; ++y) {
      LineWalk<Q> walk(line.source + lane + y * taps.row + taps.x.first * taps.column, taps);
      const float *filters = w + (y * taps.columns + taps.x.first) * P * V;
      for (int64_t left = taps.x.count(); left > 0; --left, walk.advance(), filters += P * V) {
        each<P>(ADDERIZE_EACH(k) {
          constexpr int K = decltype(k)::value;
          const vec filter = load(filters + K * V);
#pragma GCC unroll 8
          for (int q = 0; q < Q; ++q) {
            const vec d = q % 2 ? filter - input[q] : subtract(filter, input[q], one);
            const vec clipped = kind == Lanes::full ? clip(d, one) : kind == Lanes::sign ? sign(d) : clip_keeping_nan(d);
            sums.acc[q] = fma(spread<P, K>(walk.value(q)), clipped, sums.acc[q]);
          }
        });
        sums.count(P);
      }
    }
    sums.flush();
  }
  return total(trouble) == 0;
}

using DistanceLine = void (*)(const LineTaps &, const Line &);
using ClipLine = bool (*)(const LineTaps &, const Line &);

struct LineKernels {
  DistanceLine distance[widest_line + 1];
  ClipLine full[widest_line + 1], sign[widest_line + 1], careful;
};
template <int P>
constexpr LineKernels line_kernels = {
    {nullptr, distance_line<P, 1>, distance_line<P, 2>, distance_line<P, 3>, distance_line<P, 4>, distance_line<P, 5>, distance_line<P, 6>},
    {nullptr, clip_line<Lanes::full, P, 1>, clip_line<Lanes::full, P, 2>, clip_line<Lanes::full, P, 3>, clip_line<Lanes::full, P, 4>,
     clip_line<Lanes::full, P, 5>, clip_line<Lanes::full, P, 6>},
    {nullptr, clip_line<Lanes::sign, P, 1>, clip_line<Lanes::sign, P, 2>, clip_line<Lanes::sign, P, 3>, clip_line<Lanes::sign, P, 4>,
     clip_line<Lanes::sign, P, 5>, clip_line<Lanes::sign, P, 6>},
    clip_line<Lanes::careful, P, 1>};

// Of groups of P channels; null where there are none.
const LineKernels *line_kernels_of(int64_t p) {
  if (p == 1) return &line_kernels<1>;
  if (p == 2) return &line_kernels<2>;
  if constexpr (V >= 8)
    if (p == 4) return &line_kernels<4>;
  if constexpr (V >= 16)
    if (p == 8) return &line_kernels<8>;
  return nullptr;
}

}  // namespace
}  // namespace adderize
