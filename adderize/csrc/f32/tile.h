// The micro-kernels: a tile of Q x R positions times N vectors of channels, summed in registers.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

// What one position sees: rows x columns of runs, each of `length` consecutive floats. A run begins `column` floats after the one
// before it, a row of runs `row` after the one above. The filters' terms of a row follow on each other, those of the next begin
// `filter_row` terms later.
struct Runs {
  int64_t rows, columns, length, row, column, filter_row;
};

// Positions (q, r) of a tile lie at base + q * pixel + r * row.
struct PixelView {
  const float *base;
  int64_t pixel, row;
};

// A tile of inputs and of their gradients, both at base + q * pixel + r * row.
struct Tile {
  const float *in;
  float *out;
  int64_t pixel, row;
};

// Walks the positions of a tile through one run. Four neighbours share a base register: left to itself the compiler keeps a pointer
// for each position, more than there are registers.
template <int Q, int R>
struct Walk {
  static constexpr int per_row = (Q + 3) / 4;
  const char *base[R * per_row];
  int64_t pixel, three;

  ADDERIZE_INLINE Walk(const PixelView &at, int64_t offset) : pixel(at.pixel * 4), three(at.pixel * 12) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < per_row; ++i)
        base[r * per_row + i] = reinterpret_cast<const char *>(at.base + offset + r * at.row + i * 4 * at.pixel);
    asm("" : "+r"(pixel), "+r"(three));
  }
  // What position p = r * Q + q sees, `ahead` terms from here.
  ADDERIZE_INLINE const float *at(int p, int ahead) const {
    const int q = p % Q;
    const int64_t shift = q % 4 == 0 ? 0 : q % 4 == 1 ? pixel : q % 4 == 2 ? pixel * 2 : three;
    return reinterpret_cast<const float *>(base[p / Q * per_row + q / 4] + shift) + ahead;
  }
  ADDERIZE_INLINE void advance(int terms) {
#pragma GCC unroll 8
    for (int i = 0; i < R * per_row; ++i) {
      base[i] += terms * sizeof(float);
      asm("" : "+r"(base[i]));
    }
  }
};

// term(walk, w, ahead) for every term: `w + ahead * filter` are its filters. After `every` terms, which `sums` counts, flush()
// runs. Two terms go together: few steps of the pointers, they take slots from the arithmetic.
template <int Q, int R, int64_t filter, class Sums, class Term, class Flush>
ADDERIZE_INLINE void each_term(const PixelView &at, const Runs &runs, const float *filters, Sums &sums, Term term, Flush flush) {
  constexpr int together = 2;
  for (int64_t i = 0; i < runs.rows; ++i)
    for (int64_t j = 0; j < runs.columns; ++j) {
      Walk<Q, R> walk(at, i * runs.row + j * runs.column);
      const float *w = filters + (i * runs.filter_row + j * runs.length) * filter;
      for (int64_t left = runs.length; left > 0;) {
        int64_t count = min(left, sums.room);
        left -= count;
        sums.room -= count;
        for (; count >= together; count -= together) {
          each<together>(ADDERIZE_EACH(ahead) { term(walk, w + ahead.value * filter, ahead); });
          w += together * filter;
          walk.advance(together);
        }
        for (; count > 0; --count) {
          term(walk, w, Constant<0>{});
          w += filter;
          walk.advance(1);
        }
        if (sums.room == 0) flush();
      }
    }
}

// Terms of a sum in registers, and sums of such in memory before they move to a third level. Filters of 3x3 often have 48, 96 or
// 192 terms in a row.
constexpr int64_t flush_every = 96, carry_every = 16, flush_clip_every = 192;

// upper += sums. With `fresh`, upper holds nothing yet.
__attribute__((noinline)) void carry(const float *sums, float *upper, int64_t floats, bool fresh) {
  for (int64_t i = 0; i < floats; i += V) store(upper + i, fresh ? load(sums + i) : load(upper + i) + load(sums + i));
}

enum class Sum { maxima, distances };

// sums[r * Q + q][n * V + lane] = sum over k of max(x, w), or of |x - w|; filters are [k][N * V]. `sums` has room for twice as
// many.
template <Sum kind, int N, int Q, int R>
__attribute__((noinline)) void sum_tile(PixelView at, const Runs &runs, const float *filters, float *sums) {
  constexpr int64_t vectors = R * Q * N, floats = vectors * V;
  const vec one = hidden_one();
  Accumulators<vectors, flush_every> registers;
  int64_t flushes = 0;
  const auto place = [&](int i) __attribute__((always_inline)) { return sums + i * V; };
  const auto flush = [&]() __attribute__((always_inline)) {
    registers.flush(place);
    if (++flushes % carry_every) return;
    carry(sums, sums + floats, floats, flushes == carry_every);
    registers.fresh = true;
  };
  const auto term = [&](const auto &walk, const float *w, auto ahead) __attribute__((always_inline)) {
    vec filter[N];
    each<N>(ADDERIZE_EACH(n) { filter[n.value] = load(w + n.value * V); });
    each<Q * R>(ADDERIZE_EACH(p) {
      const float *position = walk.at(p.value, ahead.value);
      // For two vectors a broadcast of its own saves a load: half of each balances decoding and loading.
      constexpr bool from_memory = kind == Sum::maxima && (N == 1 || p.value % 2 == 0);
      const vec value = from_memory ? vec{} : broadcast(position);
      each<N>(ADDERIZE_EACH(n) {
        const vec part = from_memory           ? maximum(filter[n.value], position)
                         : kind == Sum::maxima ? maximum(filter[n.value], value)
                                               : absolute(filter[n.value] - value);
        vec &acc = registers.acc[p.value * N + n.value];
        acc = add(acc, part, one);
      });
    });
  };
  each_term<Q, R, N * V>(at, runs, filters, registers, term, flush);
  if (registers.room < flush_every || !flushes) flush();
  if (flushes >= carry_every) carry(sums + floats, sums, floats, registers.fresh);
}

enum class Clip { full, sign };

// out = sum over k of g * clip(w - x, -1, 1), or of g * sgn(w - x); filters are [k][V], `at` and `runs` say where each position's g
// lie. False where an input is not finite: the clip loses NaN.
template <Clip kind, int Q, int R>
__attribute__((noinline)) bool clip_tile(PixelView at, const Runs &runs, const float *filters, const Tile &tile) {
  constexpr int positions = R * Q;
  const vec one = hidden_one();
  const auto place = [&](int p) __attribute__((always_inline)) { return tile.out + p / Q * tile.row + p % Q * tile.pixel; };
  Accumulators<positions, flush_clip_every> sums;
  vec input[positions], trouble = {};
  each<positions>(ADDERIZE_EACH(p) {
    input[p.value] = load(tile.in + p.value / Q * tile.row + p.value % Q * tile.pixel);
    trouble = fma(input[p.value], vec{}, trouble);
  });
  const float sum_of_trouble = total(trouble);
  const auto term = [&](const auto &walk, const float *w, auto ahead) __attribute__((always_inline)) {
    const vec filter = load(w);
    each<positions>(ADDERIZE_EACH(p) {
      const vec d = clip_difference<p.value + ahead.value>(filter, input[p.value], one);
      vec &acc = sums.acc[p.value];
      acc = fma(walk.at(p.value, ahead.value), kind == Clip::full ? clip(d, one) : sign(d), acc);
    });
  };
  each_term<Q, R, V>(at, runs, filters, sums, term, [&]() __attribute__((always_inline)) { sums.flush(place); });
  sums.finish(place);
  return sum_of_trouble == 0;
}

using SumTile = void (*)(PixelView, const Runs &, const float *filters, float *sums);
using ClipTile = bool (*)(PixelView, const Runs &, const float *filters, const Tile &);

constexpr int sum_widest[2] = {few_tiles ? 4 : sum_registers[0], few_tiles ? 3 : sum_registers[1]};
constexpr int clip_widest = few_tiles ? 4 : clip_registers;
constexpr int most_positions = 16, most_rows = 4, most_in_a_row = 7;

// Tiles of several rows, for narrow planes. A tile never holds more positions than the registers do.
constexpr bool exists(int q, int r, int widest) { return r == 1 ? q <= widest : q * r <= widest && q <= most_in_a_row; }

// [rows - 1][positions in a row - 1]; null where no such tile exists.
template <class Entry, class Make>
constexpr auto tiles_of_shapes(Make make) {
  return table<Table<Entry, most_positions>, most_rows>([&](auto r) {
    return table<Entry, most_positions>([&](auto q) { return make(Constant<q.value + 1>{}, Constant<r.value + 1>{}); });
  });
}
template <Sum kind, int N>
constexpr auto sum_tiles = tiles_of_shapes<SumTile>([](auto q, auto r) -> SumTile {
  if constexpr (exists(q.value, r.value, sum_widest[N - 1]))
    return sum_tile<kind, N, q.value, r.value>;
  else
    return nullptr;
});
template <Clip kind>
constexpr auto clip_tiles = tiles_of_shapes<ClipTile>([](auto q, auto r) -> ClipTile {
  if constexpr (exists(q.value, r.value, clip_widest))
    return clip_tile<kind, q.value, r.value>;
  else
    return nullptr;
});

// Outputs are on their way from memory while their tile is computed, inputs while the one before is.
template <int N>
void prefetch_tile(const float *first, int64_t pixel, int64_t row, int64_t q_count, int64_t r_count) {
  for (int64_t r = 0; r < r_count; ++r)
    for (int64_t q = 0; q < q_count; ++q)
      for (int n = 0; n < N; ++n) __builtin_prefetch(first + r * row + q * pixel + n * V, 1);
}

}}  // namespace adderize
