// The micro-kernel on bytes: a tile of Q positions times B blocks of 8 channels, summed in registers.
#pragma once

#include "u8_simd.h"

namespace adderize {
namespace {

// What one position sees: `count` runs of `length` consecutive bytes (a multiple of 8), each `offset` away from the position's base.
struct ByteRuns {
  int64_t count, length;
  const int64_t *offset;
};

// Walks Q neighbours through a run. Four of them share a base register, as in tile.h.
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
  ADDERIZE_INLINE Taps taps(int q) const {
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

// sums[q * sum_step(B) + channel] = sum over k of |x - w|. The filters of block b start at w + b * w_step.
template <int Q, int B>
__attribute__((noinline)) void distance_tile(const uint8_t *base, int64_t pixel, ByteRuns runs, const uint8_t *w, int64_t w_step,
                                             int32_t *sums) {
  BlockSum acc[Q][B];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) acc[q][b] = BlockSum{};
  int64_t room = longest_sum;
  if (limited_sums) memset(sums, 0, sizeof(int32_t) * Q * sum_step(B));
  for (int64_t i = 0; i < runs.count; ++i) {
    ByteWalk<Q> x(base + runs.offset[i], pixel);
    for (int64_t k = 0; k < runs.length; k += block_taps, x.advance()) {
      Block filter[B];
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) filter[b] = load_block(w + b * w_step);
      w += block_bytes;
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        const Taps taps = x.taps(q);
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) add_distances(acc[q][b], taps, filter[b]);
      }
      if (limited_sums && --room == 0) {
        room = longest_sum;
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

using DistanceTile = void (*)(const uint8_t *base, int64_t pixel, ByteRuns, const uint8_t *w, int64_t w_step, int32_t *sums);

#if defined(ADDERIZE_AVX512)
constexpr int most_blocks = 2, widest_tile = 12;
#elif defined(ADDERIZE_AVX2)
constexpr int most_blocks = 1, widest_tile = 6;
#else
constexpr int most_blocks = 1, widest_tile = 2;
#endif

template <int B, int Q>
constexpr DistanceTile distance_entry() {
  if constexpr (B <= most_blocks && Q <= widest_tile)
    return distance_tile<Q, B>;
  else
    return nullptr;
}
#define ADDERIZE_BYTE_TILES(B)                                                                                              \
  {                                                                                                                         \
    nullptr, distance_entry<B, 1>(), distance_entry<B, 2>(), distance_entry<B, 3>(), distance_entry<B, 4>(),                \
        distance_entry<B, 5>(), distance_entry<B, 6>(), distance_entry<B, 7>(), distance_entry<B, 8>(),                     \
        distance_entry<B, 9>(), distance_entry<B, 10>(), distance_entry<B, 11>(), distance_entry<B, 12>()                   \
  }
// [blocks - 1][positions]
constexpr DistanceTile distance_tile_table[2][13] = {ADDERIZE_BYTE_TILES(1), ADDERIZE_BYTE_TILES(2)};

}  // namespace
}  // namespace adderize
