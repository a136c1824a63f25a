// Vectors of bytes: sums of absolute differences, and the conversions at both ends of the epilogue.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

// Filters are packed in blocks of 8 channels x 8 taps, so that one layout serves every instruction set: psadbw adds 8 neighbours.
constexpr int64_t block_channels = 8, block_taps = 8, block_bytes = 64;

// memcpy of a few bytes, without a call: in steps, the last of which overlaps the one before.
template <int S>
ADDERIZE_INLINE void copy_steps(uint8_t *to, const uint8_t *from, int64_t count) {
  for (int64_t i = 0; i < count - S; i += S) memcpy(to + i, from + i, S);
  memcpy(to + count - S, from + count - S, S);
}
ADDERIZE_INLINE void copy_short(uint8_t *to, const uint8_t *from, int64_t count) {
  if (count >= 32)
    copy_steps<32>(to, from, count);
  else if (count >= 8)
    copy_steps<8>(to, from, count);
  else if (count >= 4)
    copy_steps<4>(to, from, count);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// The channels of B blocks are stored in whole vectors, as the epilogue reads them.
constexpr int64_t sum_step(int blocks) { return blocks * block_channels > V ? blocks * block_channels : V; }

#if defined(ADDERIZE_AVX512) || defined(ADDERIZE_AVX2)
constexpr bool limited_sums = false;
constexpr int64_t longest_sum = 0;
#else
constexpr bool limited_sums = true;  // in 16 bits: they are emptied after so many blocks
constexpr int64_t longest_sum = 65535 / 510;
#endif

#if defined(ADDERIZE_AVX512)

using Taps = __m512i;  // 8 taps of one position, once for every channel of a block
using Block = __m512i;
struct BlockSum {
  __m512i sum;
};

ADDERIZE_INLINE Taps broadcast_taps(const uint8_t *p) {
  int64_t bits;
  memcpy(&bits, p, 8);
  return _mm512_set1_epi64(bits);
}
ADDERIZE_INLINE Block load_block(const uint8_t *p) { return _mm512_loadu_si512(p); }
ADDERIZE_INLINE void add_distances(BlockSum &to, Taps x, const Block &w) { to.sum = _mm512_add_epi64(to.sum, _mm512_sad_epu8(x, w)); }
template <int B>
ADDERIZE_INLINE void store_sums(const BlockSum *from, int32_t *to) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi32(from[0].sum, even, from[B - 1].sum));
}

#elif defined(ADDERIZE_AVX2)

using Taps = __m256i;
struct Block {
  __m256i low, high;
};
struct BlockSum {
  __m256i low, high;
};

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
template <int B>
ADDERIZE_INLINE void store_sums(const BlockSum *from, int32_t *to) {
  const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(from->low), _mm256_castsi256_ps(from->high), 0x88);
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
  words8 sums[4];
};

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
template <int B>
ADDERIZE_INLINE void store_sums(const BlockSum *from, int32_t *to) {
  for (int i = 0; i < 8; ++i) {
    const words8 &sum = from->sums[i / 2];
    const int first = i % 2 * 4;
    to[i] += sum[first] + sum[first + 1] + sum[first + 2] + sum[first + 3];
  }
}

#endif

// Channels side by side, for layers where each is a group of its own: bytes widened to 16 bits.
constexpr int W = 2 * V;
typedef uint16_t words __attribute__((vector_size(2 * W)));

#if defined(ADDERIZE_AVX512)
ADDERIZE_INLINE words load_words(const uint8_t *p) {
  return (words)_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
ADDERIZE_INLINE words distance(words a, words b) { return (words)_mm512_abs_epi16((__m512i)(a - b)); }
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  low = (ivec)_mm512_cvtepu16_epi32(_mm512_castsi512_si256((__m512i)v));
  high = (ivec)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64((__m512i)v, 1));
}
#elif defined(ADDERIZE_AVX2)
ADDERIZE_INLINE words load_words(const uint8_t *p) {
  return (words)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
ADDERIZE_INLINE words distance(words a, words b) { return (words)_mm256_abs_epi16((__m256i)(a - b)); }
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  low = (ivec)_mm256_cvtepu16_epi32(_mm256_castsi256_si128((__m256i)v));
  high = (ivec)_mm256_cvtepu16_epi32(_mm256_extracti128_si256((__m256i)v, 1));
}
#else
ADDERIZE_INLINE words load_words(const uint8_t *p) {
  typedef uint8_t bytes8 __attribute__((vector_size(W)));
  bytes8 v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, words);
}
ADDERIZE_INLINE words distance(words a, words b) { return a > b ? a - b : b - a; }
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  for (int i = 0; i < V; ++i) {
    low[i] = v[i];
    high[i] = v[V + i];
  }
}
#endif

// Halves to even.
ADDERIZE_INLINE vec nearest_integers(vec v) {
#if defined(ADDERIZE_AVX512)
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(ADDERIZE_AVX2)
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  for (int i = 0; i < V; ++i) v[i] = __builtin_rintf(v[i]);
  return v;
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
  __m128i low = _mm512_cvtepi32_epi8((__m512i)v);
  asm("" : "+v"(low));  // a conversion with a masked store is slow
  if (count == V)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), low);
  else
    copy_short(p, reinterpret_cast<const uint8_t *>(&low), count);
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
    copy_short(p, reinterpret_cast<const uint8_t *>(&packed), count);
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
