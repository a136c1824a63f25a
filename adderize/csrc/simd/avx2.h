// AVX2 and FMA.
#pragma once

#include <immintrin.h>

namespace adderize { namespace {
constexpr int V = 8;
}}  // namespace adderize

#include "simd/unmasked.h"

namespace adderize { namespace {

constexpr bool has_spare_multipliers = true, clip_is_one_instruction = false, pick_is_quick = true;
constexpr int sum_registers[2] = {12, 5}, clip_registers = 6, byte_registers = 6, most_blocks = 1, sign_registers = 6;

ADDERIZE_INLINE vec load(const float *p, int64_t count) {
  if (count == V) return load(p);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
ADDERIZE_INLINE vec maximum(vec a, vec b) { return _mm256_max_ps(a, b); }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return _mm256_min_ps(a, b); }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
ADDERIZE_INLINE vec fused_difference(vec a, vec b, vec c) { return _mm256_fmsub_ps(a, b, c); }
ADDERIZE_INLINE vec fused_remainder(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
ADDERIZE_INLINE void hide(vec &v) { asm volatile("" : "+v"(v)); }
ADDERIZE_INLINE vec clip(vec d, vec one) { return maximum(minimum(d, one), -one); }
ADDERIZE_INLINE vec nearest_integers(vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// The integer negation of the bits of 2 gives those of -2.
constexpr QuickSign quick_signs = {1, 2, 0, __builtin_inff()};
ADDERIZE_INLINE vec quick_sign(vec d, vec) { return (vec)_mm256_sign_epi32((__m256i)all(2.0f), (__m256i)d); }

// An integer load: the float broadcast takes a slot of the floating-point units on some cores.
ADDERIZE_INLINE vec broadcast(const float *p) { return _mm256_castsi256_ps(_mm256_set1_epi32(read<int32_t>(p))); }
ADDERIZE_INLINE vec maximum(vec a, const float *b) { return maximum(a, broadcast(b)); }
ADDERIZE_INLINE vec fma(const float *a, vec b, vec c) { return fma(broadcast(a), b, c); }

using ByteTaps = __m256i;
struct ByteBlock {
  __m256i low, high;
};
struct BlockSum {
  __m256i low, high;
};
constexpr int64_t longest_block_sum = INT64_MAX;

ADDERIZE_INLINE ByteTaps broadcast_taps(const uint8_t *p) { return _mm256_set1_epi64x(read<int64_t>(p)); }
ADDERIZE_INLINE ByteBlock load_block(const uint8_t *p) {
  const __m256i *from = reinterpret_cast<const __m256i *>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
ADDERIZE_INLINE void add_distances(BlockSum &to, ByteTaps x, const ByteBlock &w) {
  to.low = _mm256_add_epi64(to.low, _mm256_sad_epu8(x, w.low));
  to.high = _mm256_add_epi64(to.high, _mm256_sad_epu8(x, w.high));
}
template <int B>
ADDERIZE_INLINE void store_sums(const BlockSum *from, int32_t *to) {
  const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(from->low), _mm256_castsi256_ps(from->high), 0x88);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xd8));
}

ADDERIZE_INLINE words load_words(const uint8_t *p) {
  return (words)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
ADDERIZE_INLINE words distance(words a, words b) { return (words)_mm256_abs_epi16((__m256i)(a - b)); }
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  low = (ivec)_mm256_cvtepu16_epi32(_mm256_castsi256_si128((__m256i)v));
  high = (ivec)_mm256_cvtepu16_epi32(_mm256_extracti128_si256((__m256i)v, 1));
}

// out[i] = from[at[i]] for 16 bytes.
ADDERIZE_INLINE void pick16(const uint8_t *from, const uint8_t *at, uint8_t *out) {
  const __m128i picked = _mm_shuffle_epi8(read<__m128i>(from), read<__m128i>(at));
  memcpy(out, &picked, sizeof picked);
}

ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  int64_t v = 0;
  count == V ? memcpy(&v, p, V) : memcpy(&v, p, size_t(count));
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

}}  // namespace adderize
