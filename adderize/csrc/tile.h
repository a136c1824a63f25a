// The micro-kernels: a tile of Q x R positions times N vectors of channels, summed in registers.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

// What one position sees: `count` runs of `length` consecutive floats, each `offset` away from the position's base.
struct Runs {
  int64_t count, length;
  const int64_t *offset;
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
  ADDERIZE_INLINE vec value(int q, int r) const {
    const int64_t shift = q % 4 == 0 ? 0 : q % 4 == 1 ? pixel : q % 4 == 2 ? pixel * 2 : three;
    return broadcast(reinterpret_cast<const float *>(base[r * per_row + q / 4] + shift));
  }
  ADDERIZE_INLINE void advance() {
#pragma GCC unroll 8
    for (int i = 0; i < R * per_row; ++i) {
      base[i] += sizeof(float);
      asm("" : "+r"(base[i]));
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

// sums[r * Q + q][n * V + lane] = sum over k of max(x, w), or of |x - w|; w is [k][N * V]. `sums` has room for twice as many.
template <Sum kind, int Q, int R, int N>
__attribute__((noinline)) void sum_tile(Grid at, Runs runs, const float *w, float *sums) {
  vec acc[R][Q][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][q][n] = vec{};
  const vec one = hidden_one();
  constexpr int64_t floats = R * Q * N * V;
  int64_t room = flush_every, flushes = 0;
  const auto flush = [&] {
    const bool fresh = flushes % carry_every == 0;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          float *to = sums + ((r * Q + q) * N + n) * V;
          if (!fresh) acc[r][q][n] += load(to);
          store(to, acc[r][q][n]);
          acc[r][q][n] = vec{};
        }
    room = flush_every;
    if (++flushes % carry_every == 0) carry(sums, sums + floats, floats, flushes == carry_every);
  };
  for (int64_t i = 0; i < runs.count; ++i) {
    Walk<Q, R> x(at, runs.offset[i]);
    for (int64_t left = runs.length; left > 0;) {
      const int64_t step = least(left, room);
      for (int64_t k = 0; k < step; ++k, x.advance()) {
        vec filter[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) filter[n] = load(w + n * V);
        w += N * V;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int q = 0; q < Q; ++q) {
            const vec value = x.value(q, r);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
              const vec term = kind == Sum::maxima ? maximum(filter[n], value) : absolute(filter[n] - value);
              acc[r][q][n] = add(acc[r][q][n], term, one);
            }
          }
      }
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

// out = sum over k of g * clip(w - x, -1, 1), or of g * sgn(w - x); w is [k][N * V], `at` and `runs` say where each position's g lie.
// False where an input is not finite: the clip loses NaN.
template <Clip kind, int Q, int R, int N>
__attribute__((noinline)) bool clip_tile(Grid at, Runs runs, const float *w, const Tile &tile) {
  vec acc[R][Q][N], input[R][Q][N], trouble = {};
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        acc[r][q][n] = vec{};
        input[r][q][n] = load(tile.in + r * tile.row + q * tile.pixel + n * V);
        trouble = fma(input[r][q][n], vec{}, trouble);
      }
  const float sum_of_trouble = total(trouble);
  const vec one = hidden_one();
  bool flushed = false;
  int64_t room = flush_clip_every;
  const auto flush = [&] {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          float *to = tile.out + r * tile.row + q * tile.pixel + n * V;
          if (flushed) acc[r][q][n] += load(to);
          store(to, acc[r][q][n]);
          acc[r][q][n] = vec{};
        }
    flushed = true;
    room = flush_clip_every;
  };
  for (int64_t i = 0; i < runs.count; ++i) {
    Walk<Q, R> g(at, runs.offset[i]);
    for (int64_t left = runs.length; left > 0;) {
      const int64_t step = least(left, room);
      for (int64_t k = 0; k < step; ++k, g.advance()) {
        vec filter[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) filter[n] = load(w + n * V);
        w += N * V;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int q = 0; q < Q; ++q) {
            const vec weight = g.value(q, r);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
              vec &sum = acc[r][q][n];
              // Some subtractions go to the multipliers: as many as balance the clip, which is one instruction or two.
#if defined(ADDERIZE_AVX512)
              const bool multiply = N == 1 ? (r * Q + q) % 3 == 0 : (q + n) % 2 == 0;
#else
              const bool multiply = true;
#endif
              const vec d = multiply ? subtract(filter[n], input[r][q][n], one) : filter[n] - input[r][q][n];
              if (kind == Clip::full)
                sum = fma(weight, clip(d, one), sum);
              else
                sum = fma(weight, sign(d), sum);
            }
          }
      }
      left -= step;
      if ((room -= step) == 0) flush();
    }
  }
  if (room < flush_clip_every || !flushed) flush();
  return sum_of_trouble == 0;
}

}  // namespace
}  // namespace adderize
