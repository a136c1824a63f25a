// The micro-kernel on bytes: a tile of Q positions times B blocks of 8 channels, summed in registers.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

// What one position sees: `count` runs of `length` consecutive bytes (a multiple of 8), each `offset` away from the position's
// base.
struct ByteRuns {
  int64_t count, length;
  const int64_t *offset;
};

// Walks Q neighbours through a run. Four of them share a base register, as in f32/tile.h.
template <int Q>
struct ByteWalk {
  static constexpr int bases = (Q + 3) / 4;
  const uint8_t *base[bases];
  int64_t pixel, three;

  ADDERIZE_INLINE ByteWalk(const uint8_t *at, int64_t pixel_bytes) : pixel(pixel_bytes), three(3 * pixel_bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < bases; ++i) base[i] = at + i * 4 * pixel_bytes;
    asm("" : "+r"(pixel), "+r"(three));
  }
  ADDERIZE_INLINE ByteTaps taps(int q) const {
    return broadcast_taps(base[q / 4] + (q % 4 == 0 ? 0 : q % 4 == 1 ? pixel : q % 4 == 2 ? 2 * pixel : three));
  }
  ADDERIZE_INLINE void advance() {
#pragma GCC unroll 4
    for (int i = 0; i < bases; ++i) {
      base[i] += block_taps;
      asm("" : "+r"(base[i]));
    }
  }
};

// The channels of B blocks are stored in whole vectors, as the epilogue reads them.
constexpr int64_t sum_step(int blocks) { return blocks * block_channels > V ? blocks * block_channels : V; }

// sums[q * sum_step(B) + channel] = sum over k of |x - w|. The filters of block b start at w + b * w_step.
template <int Q, int B>
__attribute__((noinline)) void byte_tile(const uint8_t *base, int64_t pixel, ByteRuns runs, const uint8_t *w, int64_t w_step,
                                         int32_t *sums) {
  constexpr bool limited = longest_block_sum < INT64_MAX;  // then store_sums adds to what is there
  BlockSum acc[Q][B];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) acc[q][b] = BlockSum{};
  int64_t room = longest_block_sum;
  if (limited) memset(sums, 0, sizeof(int32_t) * Q * sum_step(B));
  for (int64_t i = 0; i < runs.count; ++i) {
    ByteWalk<Q> x(base + runs.offset[i], pixel);
    for (int64_t k = 0; k < runs.length; k += block_taps, x.advance()) {
      ByteBlock filter[B];
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) filter[b] = load_block(w + b * w_step);
      w += block_bytes;
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        const ByteTaps taps = x.taps(q);
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) add_distances(acc[q][b], taps, filter[b]);
      }
      if (limited && --room == 0) {
        room = longest_block_sum;
        for (int q = 0; q < Q; ++q) {
          store_sums<B>(acc[q], sums + q * sum_step(B));
          for (int b = 0; b < B; ++b) acc[q][b] = BlockSum{};
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) store_sums<B>(acc[q], sums + q * sum_step(B));
}

using ByteTile = void (*)(const uint8_t *base, int64_t pixel, ByteRuns, const uint8_t *w, int64_t w_step, int32_t *sums);
// [positions - 1]
template <int B>
constexpr auto byte_tiles = table<ByteTile, byte_registers>([](auto q) -> ByteTile { return byte_tile<q.value + 1, B>; });

}}  // namespace adderize
