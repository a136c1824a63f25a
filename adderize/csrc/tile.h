// The micro-kernels: a tile of Q x R positions times N vectors of channels, summed in registers.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

// What one position sees: rows x columns of runs, each of `length` consecutive floats. A run begins `column` floats after the one before
// it, a row of runs `row` after the one above. The filters' terms of a row follow on each other, those of the next begin `filter_row`
// terms later.
struct Runs {
  int64_t rows, columns, length, row, column, filter_row;
};

// Positions (q, r) of a tile lie at base + q * pixel + r * row.
struct Grid {
  const float *base;
  int64_t pixel, row;
};

// Walks the positions of a tile through one run. Four neighbours share a base register: left to itself the compiler keeps a pointer
// for each position, more than there are registers.
template <int Q, int R>
struct Walk {
  static constexpr int per_row = (Q + 3) / 4;
  const char *base[R * per_row];
  int64_t pixel, three;

  ADDERIZE_INLINE Walk(const Grid &at, int64_t offset) : pixel(at.pixel * 4), three(at.pixel * 12) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < per_row; ++i)
        base[r * per_row + i] = reinterpret_cast<const char *>(at.base + offset + r * at.row + i * 4 * at.pixel);
    asm("" : "+r"(pixel), "+r"(three));
  }
  // What position (q, r) sees, `ahead` terms from here.
  ADDERIZE_INLINE const float *at(int q, int r, int ahead) const {
    const int64_t shift = q % 4 == 0 ? 0 : q % 4 == 1 ? pixel : q % 4 == 2 ? pixel * 2 : three;
    return reinterpret_cast<const float *>(base[r * per_row + q / 4] + shift) + ahead;
  }
  ADDERIZE_INLINE void advance(int terms) {
#pragma GCC unroll 8
    for (int i = 0; i < R * per_row; ++i) {
      base[i] += terms * sizeof(float);
      asm("" : "+r"(base[i]));
    }
  }

  // Calls term(ahead) for `count` terms and moves past them: few steps of the pointers, they take slots from the arithmetic.
  template <class Term>
  ADDERIZE_INLINE void terms(int64_t count, const float *&w, int64_t filter, Term term) {
    constexpr int together = 2;
    for (; count >= together; count -= together) {
      each<together>(term);
      w += together * filter;
      advance(together);
    }
    for (; count > 0; --count) {
      term(Constant<0>{});
      w += filter;
      advance(1);
    }
  }
};

// A long sum in one accumulator loses digits: its parts are added to a second level after so many terms, those to a third after so
// many parts. Filters of 3x3 often have 48, 96 or 192 terms in a row.
constexpr int64_t flush_every = 96, carry_every = 16, flush_clip_every = 192;

// upper += sums. With `fresh`, upper holds nothing yet.
__attribute__((noinline)) void carry(const float *sums, float *upper, int64_t floats, bool fresh) {
  for (int64_t i = 0; i < floats; i += V) store(upper + i, fresh ? load(sums + i) : load(upper + i) + load(sums + i));
}

enum class Sum { maxima, distances };

// sums[r * Q + q][n * V + lane] = sum over k of max(x, w), or of |x - w|; filters are [k][N * V]. `sums` has room for twice as many.
template <Sum kind, int Q, int R, int N>
__attribute__((noinline)) void sum_tile(Grid at, const Runs &runs, const float *filters, float *sums) {
  constexpr int vectors = R * Q * N;
  constexpr int64_t floats = vectors * V;
  const vec one = hidden_one();
  vec acc[vectors];
  each<vectors>(ADDERIZE_EACH(i) { acc[i.value] = vec{}; });
  int64_t room = flush_every, flushes = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    const bool fresh = flushes % carry_every == 0;
    each<vectors>(ADDERIZE_EACH(i) {
      float *to = sums + i.value * V;
      store(to, fresh ? acc[i.value] : acc[i.value] + load(to));
      acc[i.value] = vec{};
    });
    room = flush_every;
    if (++flushes % carry_every == 0) carry(sums, sums + floats, floats, flushes == carry_every);
  };
  for (int64_t i = 0; i < runs.rows; ++i)
    for (int64_t j = 0; j < runs.columns; ++j) {
      Walk<Q, R> x(at, i * runs.row + j * runs.column);
      const float *w = filters + (i * runs.filter_row + j * runs.length) * N * V;
      for (int64_t left = runs.length; left > 0;) {
        const int64_t step = least(left, room);
        x.terms(step, w, N * V, ADDERIZE_EACH(ahead) {
          vec filter[N];
          each<N>(ADDERIZE_EACH(n) { filter[n.value] = load(w + (ahead.value * N + n.value) * V); });
          each<Q * R>(ADDERIZE_EACH(p) {
            const float *position = x.at(p.value % Q, p.value / Q, ahead.value);
            // For two vectors a broadcast of its own saves a load: half of each balances decoding and loading.
            constexpr bool from_memory = kind == Sum::maxima && (N == 1 || p.value % 2 == 0);
            const vec value = from_memory ? vec{} : broadcast(position);
            each<N>(ADDERIZE_EACH(n) {
              const vec term = from_memory                ? maximum(filter[n.value], position)
                               : kind == Sum::maxima ? maximum(filter[n.value], value)
                                                          : absolute(filter[n.value] - value);
              acc[p.value * N + n.value] = add(acc[p.value * N + n.value], term, one);
            });
          });
        });
        left -= step;
        if ((room -= step) == 0) flush();
      }
    }
  if (room < flush_every || !flushes) flush();
  if (flushes < carry_every) return;
  carry(sums + floats, sums, floats, flushes % carry_every == 0);
}

enum class Clip { full, sign };

// A tile of inputs and of their gradients, both at base + q * pixel + r * row.
struct Tile {
  const float *in;
  float *out;
  int64_t pixel, row;
};

// out = sum over k of g * clip(w - x, -1, 1), or of g * sgn(w - x); filters are [k][V], `at` and `runs` say where each position's g lie.
// False where an input is not finite: the clip loses NaN.
template <Clip kind, int Q, int R>
__attribute__((noinline)) bool clip_tile(Grid at, const Runs &runs, const float *filters, const Tile &tile) {
  constexpr int positions = R * Q;
  const vec one = hidden_one();
  const auto place = [&](int p) __attribute__((always_inline)) { return p / Q * tile.row + p % Q * tile.pixel; };
  vec acc[positions], input[positions], trouble = {};
  each<positions>(ADDERIZE_EACH(p) {
    acc[p.value] = vec{};
    input[p.value] = load(tile.in + place(p.value));
    trouble = fma(input[p.value], vec{}, trouble);
  });
  const float sum_of_trouble = total(trouble);
  bool flushed = false;
  int64_t room = flush_clip_every;
  const auto flush = [&]() __attribute__((always_inline)) {
    each<positions>(ADDERIZE_EACH(p) {
      float *to = tile.out + place(p.value);
      store(to, flushed ? acc[p.value] + load(to) : acc[p.value]);
      acc[p.value] = vec{};
    });
    flushed = true;
    room = flush_clip_every;
  };
  for (int64_t i = 0; i < runs.rows; ++i)
    for (int64_t j = 0; j < runs.columns; ++j) {
      Walk<Q, R> g(at, i * runs.row + j * runs.column);
      const float *w = filters + (i * runs.filter_row + j * runs.length) * V;
      for (int64_t left = runs.length; left > 0;) {
        const int64_t step = least(left, room);
        g.terms(step, w, V, ADDERIZE_EACH(ahead) {
          const vec filter = load(w + ahead.value * V);
          each<positions>(ADDERIZE_EACH(p) {
            // Half of the subtractions balance a clip of one instruction, all of them one of two.
            constexpr bool multiply = !clip_is_one_instruction || (p.value + ahead.value) % 2 == 0;
            const vec d = multiply ? subtract(filter, input[p.value], one) : filter - input[p.value];
            acc[p.value] = fma(g.at(p.value % Q, p.value / Q, ahead.value), kind == Clip::full ? clip(d, one) : sign(d), acc[p.value]);
          });
        });
        left -= step;
        if ((room -= step) == 0) flush();
      }
    }
  if (room < flush_clip_every || !flushed) flush();
  return sum_of_trouble == 0;
}

}  // namespace
}  // namespace adderize
