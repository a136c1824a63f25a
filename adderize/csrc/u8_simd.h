// Vectors of bytes: sums of absolute differences, and the conversions at both ends of the epilogue.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

// Filters are packed in blocks of 8 channels x 8 taps, so that one layout serves every instruction set: psadbw adds 8 neighbours.
constexpr int64_t block_channels = 8, block_taps = 8, block_bytes = 64;

#if defined(ADDERIZE_AVX512)

using Taps = __m512i;  // 8 taps of one position, once for every channel of a block
using Block = __m512i;
struct BlockSum {
  __m512i sum = {};
};
constexpr int64_t longest_sum = INT64_MAX;  // blocks that a BlockSum can hold

ADDERIZE_INLINE Taps broadcast_taps(const uint8_t *p) {
  int64_t bits;
  memcpy(&bits, p, 8);
  return _mm512_set1_epi64(bits);
}
ADDERIZE_INLINE Block load_block(const uint8_t *p) { return _mm512_loadu_si512(p); }
ADDERIZE_INLINE void add_distances(BlockSum &to, Taps x, const Block &w) { to.sum = _mm512_add_epi64(to.sum, _mm512_sad_epu8(x, w)); }
ADDERIZE_INLINE void store_sum(const BlockSum &from, int32_t *to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi64_epi32(from.sum));
}

#elif defined(ADDERIZE_AVX2)

using Taps = __m256i;
struct Block {
  __m256i low, high;
};
struct BlockSum {
  __m256i low = {}, high = {};
};
constexpr int64_t longest_sum = INT64_MAX;

ADDERIZE_INLINE Taps broadcast_taps(const uint8_t *p) {
  int64_t bits;
  memcpy(&bits, p, 8);
  return _mm256_set1_epi64x(bits);
}
ADDERIZE_INLINE Block load_block(const uint8_t *p) {
  const __m256i *from = reinterpret_cast<const __m256i *>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
ADDERIZE_INLINE void add_distances(BlockSum &to, Taps x, const Block &w) {
  to.low = _mm256_add_epi64(to.low, _mm256_sad_epu8(x, w.low));
  to.high = _mm256_add_epi64(to.high, _mm256_sad_epu8(x, w.high));
}
ADDERIZE_INLINE void store_sum(const BlockSum &from, int32_t *to) {
  const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(from.low), _mm256_castsi256_ps(from.high), 0x88);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xd8));
}

#else

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t words8 __attribute__((vector_size(16)));
using Taps = bytes16;
struct Block {
  bytes16 channels[4];  // two in each
};
struct BlockSum {
  words8 sums[4] = {};
};
constexpr int64_t longest_sum = 65535 / 510;

ADDERIZE_INLINE Taps broadcast_taps(const uint8_t *p) {
  Taps taps;
  memcpy(&taps, p, 8);
  memcpy(reinterpret_cast<char *>(&taps) + 8, p, 8);
  return taps;
}
ADDERIZE_INLINE Block load_block(const uint8_t *p) {
  Block block;
  memcpy(&block, p, block_bytes);
  return block;
}
ADDERIZE_INLINE void add_distances(BlockSum &to, Taps x, const Block &w) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const words8 d = (words8)(x > w.channels[i] ? x - w.channels[i] : w.channels[i] - x);
    to.sums[i] += (d & 255) + (d >> 8);
  }
}
ADDERIZE_INLINE void store_sum(const BlockSum &from, int32_t *to) {
  for (int i = 0; i < 8; ++i) {
    const words8 &sum = from.sums[i / 2];
    const int first = i % 2 * 4;
    to[i] = sum[first] + sum[first + 1] + sum[first + 2] + sum[first + 3];
  }
}

#endif

// Bytes side by side, for layers where every channel is a group of its own.
#if defined(ADDERIZE_AVX512)
constexpr int W = 64;
#elif defined(ADDERIZE_AVX2)
constexpr int W = 32;
#else
constexpr int W = 16;
#endif
typedef uint8_t bytes __attribute__((vector_size(W)));
typedef uint16_t words __attribute__((vector_size(W)));

ADDERIZE_INLINE bytes load_row(const uint8_t *p) {
  bytes v;
  memcpy(&v, p, sizeof v);
  return v;
}
ADDERIZE_INLINE bytes distance(bytes a, bytes b) {
#if defined(ADDERIZE_AVX512)
  return (bytes)_mm512_sub_epi8(_mm512_max_epu8((__m512i)a, (__m512i)b), _mm512_min_epu8((__m512i)a, (__m512i)b));
#elif defined(ADDERIZE_AVX2)
  return (bytes)_mm256_sub_epi8(_mm256_max_epu8((__m256i)a, (__m256i)b), _mm256_min_epu8((__m256i)a, (__m256i)b));
#else
  return a > b ? a - b : b - a;
#endif
}

// Between bytes and the lanes of a float vector; `count` <= V lanes take part.
#if defined(ADDERIZE_AVX512)
ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  const __m128i v = count == V ? _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)) : _mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), p);
  return (ivec)_mm512_cvtepu8_epi32(v);
}
// The low byte of every lane.
ADDERIZE_INLINE void store_bytes(uint8_t *p, ivec v, int64_t count) {
  const __m128i low = _mm512_cvtepi32_epi8((__m512i)v);
  if (count == V)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), low);
  else
    _mm_mask_storeu_epi8(p, __mmask16((1u << count) - 1), low);
}
#elif defined(ADDERIZE_AVX2)
ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  int64_t v = 0;
  if (count == V)
    memcpy(&v, p, V);
  else
    memcpy(&v, p, size_t(count));
  return (ivec)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(v));
}
ADDERIZE_INLINE void store_bytes(uint8_t *p, ivec v, int64_t count) {
  const __m256i low = (__m256i)(v & 255);
  const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  const int64_t packed = _mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs));
  if (count == V)
    memcpy(p, &packed, V);
  else
    memcpy(p, &packed, size_t(count));
}
#else
ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  ivec v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
ADDERIZE_INLINE void store_bytes(uint8_t *p, ivec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = uint8_t(v[i]);
}
#endif

}  // namespace
}  // namespace adderize
