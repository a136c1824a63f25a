// The micro-kernels of depthwise layers and small groups: a line of positions, all channels, read and written in place.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

constexpr int widest_line = few_tiles ? 2 : 6;  // positions

// What the positions of a line have in common; strides in floats.
struct LineTaps {
  int64_t rows, columns;
  Span y, x;                        // those inside the source
  int64_t row = 0, column = 0;      // from one tap to the next in the source
  int64_t step = 0, pixel = 0;      // from one position to the next in the source and in the output
  int64_t channels = 0, terms = 0;  // terms: of all filters of a lane
};

struct Line {
  const float *source, *in;
  float *out;
  const float *w;
};

// Lane l becomes channel k of lane l's group of P.
template <int P, int K>
ADDERIZE_INLINE vec spread_channel(vec v) {
  if constexpr (P == 1) return v;
  return shuffle(v, v, [](int lane) { return lane / P * P + K; });
}

// The last vector of lanes overlaps the one before it: none is partial.
ADDERIZE_INLINE int64_t first_lane(int64_t block, int64_t channels) { return min(block * V, channels - V); }

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

constexpr int64_t flush_line_every = 192;

// For every vector of lanes, begin(lane, w, sums), then term(Constant<k>, walk, filter, sums) for the channels of each tap's group;
// the sums meet in the output.
template <int P, int Q, class Begin, class Term>
ADDERIZE_INLINE void each_line_term(const LineTaps &line_taps, const Line &line, Begin begin, Term term) {
  const LineTaps taps = line_taps;
  const int64_t blocks = ceil_div(taps.channels, V);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t lane = first_lane(block, taps.channels);
    const float *w = line.w + block * taps.terms * V;
    const auto place = [&](int q) __attribute__((always_inline)) { return line.out + lane + q * taps.pixel; };
    each<Q>(ADDERIZE_EACH(q) { __builtin_prefetch(place(q.value), 1); });
    Accumulators<Q, flush_line_every> sums;
    begin(lane, w, sums.acc);
    for (int64_t y = taps.y.first; y < taps.y.last; ++y) {
      LineWalk<Q> walk(line.source + lane + y * taps.row + taps.x.first * taps.column, taps);
      const float *filters = w + (y * taps.columns + taps.x.first) * P * V;
      for (int64_t left = taps.x.count(); left > 0; --left, walk.advance(), filters += P * V) {
        each<P>(ADDERIZE_EACH(k) { term(k, walk, load(filters + k.value * V), sums.acc); });
        if (__builtin_expect((sums.room -= P) <= 0, 0)) sums.flush(place);
      }
    }
    sums.flush(place);
  }
}

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
void distance_line(const LineTaps &taps, const Line &line) {
  const vec one = hidden_one();
  const bool padded = taps.y.count() < taps.rows || taps.x.count() < taps.columns;
  const auto begin = [&](int64_t, const float *w, vec *acc) __attribute__((always_inline)) {
    if (!padded) return;
    acc[0] = padded_distances<P>(taps, w);
    each<Q>(ADDERIZE_EACH(q) { acc[q.value] = acc[0]; });
  };
  const auto term = [&](auto k, const LineWalk<Q> &walk, vec filter, vec *acc) __attribute__((always_inline)) {
    constexpr int K = decltype(k)::value;
    each<Q>(ADDERIZE_EACH(q) {
      const vec distance = absolute(spread_channel<P, K>(walk.value(q.value)) - filter);
      acc[q.value] = subtract_product(acc[q.value], distance, one);
    });
  };
  each_line_term<P, Q>(taps, line, begin, term);
}

enum class Lanes { full, sign, careful };

// False where an input is not finite: the full clip loses NaN, the careful one keeps it.
template <Lanes kind, int P, int Q>
bool clip_line(const LineTaps &taps, const Line &line) {
  const vec one = hidden_one();
  vec trouble = {}, input[Q];
  const auto begin = [&](int64_t lane, const float *, vec *) __attribute__((always_inline)) {
    each<Q>(ADDERIZE_EACH(q) {
      input[q.value] = load(line.in + lane + q.value * taps.pixel);
      trouble = fma(input[q.value], vec{}, trouble);
    });
  };
  const auto term = [&](auto k, const LineWalk<Q> &walk, vec filter, vec *acc) __attribute__((always_inline)) {
    constexpr int K = decltype(k)::value;
    each<Q>(ADDERIZE_EACH(q) {
      const vec d = q.value % 2 ? filter - input[q.value] : subtract(filter, input[q.value], one);
      const vec clipped = kind == Lanes::full ? clip(d, one) : kind == Lanes::sign ? sign(d) : clip_keeping_nan(d);
      acc[q.value] = fma(spread_channel<P, K>(walk.value(q.value)), clipped, acc[q.value]);
    });
  };
  each_line_term<P, Q>(taps, line, begin, term);
  return total(trouble) == 0;
}

using DistanceLine = void (*)(const LineTaps &, const Line &);
using ClipLine = bool (*)(const LineTaps &, const Line &);

// [positions - 1]
struct LineKernels {
  Table<DistanceLine, widest_line> distance;
  Table<ClipLine, widest_line> full, sign;
  ClipLine careful;  // one position
};
template <int P>
constexpr LineKernels line_kernels = {
    table<DistanceLine, widest_line>([](auto q) -> DistanceLine { return distance_line<P, q.value + 1>; }),
    table<ClipLine, widest_line>([](auto q) -> ClipLine { return clip_line<Lanes::full, P, q.value + 1>; }),
    table<ClipLine, widest_line>([](auto q) -> ClipLine { return clip_line<Lanes::sign, P, q.value + 1>; }),
    clip_line<Lanes::careful, P, 1>};

// The kernels for groups of P channels; null where there are none.
const LineKernels *line_kernels_of(int64_t p) {
  if (p == 1) return &line_kernels<1>;
  if (p == 2) return &line_kernels<2>;
  if constexpr (V >= 8)
    if (p == 4) return &line_kernels<4>;
  if constexpr (V >= 16)
    if (p == 8) return &line_kernels<8>;
  return nullptr;
}

}}  // namespace adderize
