// AVX-512 F, DQ, VL and BW.
#pragma once

#include <immintrin.h>

namespace adderize { namespace {
constexpr int V = 16;
}}  // namespace adderize

#include "simd/vec.h"

namespace adderize { namespace {

constexpr bool has_spare_multipliers = true, clip_is_one_instruction = true, pick_is_quick = true;
// Positions of the largest tiles that fit the registers: sums of 1 and of 2 vectors, clips, distances of bytes; filter
// elements whose signs are summed.
constexpr int sum_registers[2] = {16, 13}, clip_registers = 14, byte_registers = 12, most_blocks = 2, sign_registers = 8;

ADDERIZE_INLINE vec load(const float *p, int64_t count) { return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p); }
ADDERIZE_INLINE void store(float *p, vec v, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), v); }
ADDERIZE_INLINE vec maximum(vec a, vec b) { return _mm512_max_ps(a, b); }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return _mm512_min_ps(a, b); }
ADDERIZE_INLINE vec absolute(vec a) { return _mm512_abs_ps(a); }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
ADDERIZE_INLINE vec fused_difference(vec a, vec b, vec c) { return _mm512_fmsub_ps(a, b, c); }
ADDERIZE_INLINE vec fused_remainder(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
ADDERIZE_INLINE void hide(vec &v) { asm volatile("" : "+v"(v)); }
// A NaN counts as 0, as it does for torch.sign. What becomes of each kind of number, from right to left: two of NaN, 0 and 1, the
// infinities, negative and positive ones; 8 stands for 0, 9 for -1, a for 1.
ADDERIZE_INLINE vec sign(vec d) { return _mm512_fixupimm_ps(d, d, _mm512_set1_epi32(int(0xa9a9a888)), 0); }
// The smaller magnitude with the sign of the first.
ADDERIZE_INLINE vec clip(vec d, vec one) { return _mm512_range_ps(d, one, 2); }
ADDERIZE_INLINE float total(vec v) { return _mm512_reduce_add_ps(v); }
ADDERIZE_INLINE float lowest(vec v) { return _mm512_reduce_min_ps(v); }
ADDERIZE_INLINE vec nearest_integers(vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// Scaled like this, numbers that differ do so by 1 or more: the clip of their difference is its sign.
constexpr QuickSign quick_signs = {0x1p112f, 1, 0x1p-88f, 0x1p15f};
ADDERIZE_INLINE vec quick_sign(vec d, vec one) { return clip(d, one); }

// An integer load: the float broadcast takes a slot of the floating-point units on some cores.
ADDERIZE_INLINE vec broadcast(const float *p) { return _mm512_castsi512_ps(_mm512_set1_epi32(read<int32_t>(p))); }
// A broadcast in the instruction saves a slot of the decoder, the bottleneck of the inner loops; GCC has no pattern for the maximum
// and undoes the fma where a neighbour reads the same number.
ADDERIZE_INLINE vec maximum(vec a, const float *b) {
  vec out;
  asm("vmaxps %2%{1to16%}, %1, %0" : "=v"(out) : "v"(a), "m"(*b));
  return out;
}
ADDERIZE_INLINE vec fma(const float *a, vec b, vec c) {
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
  return c;
}

using ByteTaps = __m512i;  // 8 taps of one position, once for every channel of a block
using ByteBlock = __m512i;
struct BlockSum {
  __m512i sum;
};
constexpr int64_t longest_block_sum = INT64_MAX;

ADDERIZE_INLINE ByteTaps broadcast_taps(const uint8_t *p) { return _mm512_set1_epi64(read<int64_t>(p)); }
ADDERIZE_INLINE ByteBlock load_block(const uint8_t *p) { return _mm512_loadu_si512(p); }
ADDERIZE_INLINE void add_distances(BlockSum &to, ByteTaps x, const ByteBlock &w) {
  to.sum = _mm512_add_epi64(to.sum, _mm512_sad_epu8(x, w));
}
template <int B>
ADDERIZE_INLINE void store_sums(const BlockSum *from, int32_t *to) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi32(from[0].sum, even, from[B - 1].sum));
}

ADDERIZE_INLINE words load_words(const uint8_t *p) {
  return (words)_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
ADDERIZE_INLINE words distance(words a, words b) { return (words)_mm512_abs_epi16((__m512i)(a - b)); }
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  low = (ivec)_mm512_cvtepu16_epi32(_mm512_castsi512_si256((__m512i)v));
  high = (ivec)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64((__m512i)v, 1));
}

// out[i] = from[at[i]] for 16 bytes.
ADDERIZE_INLINE void pick16(const uint8_t *from, const uint8_t *at, uint8_t *out) {
  const __m128i picked = _mm_shuffle_epi8(read<__m128i>(from), read<__m128i>(at));
  memcpy(out, &picked, sizeof picked);
}

ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  const __m128i v =
      count == V ? _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)) : _mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), p);
  return (ivec)_mm512_cvtepu8_epi32(v);
}
ADDERIZE_INLINE void store_bytes(uint8_t *p, ivec v, int64_t count) {
  __m128i low = _mm512_cvtepi32_epi8((__m512i)v);
  asm("" : "+v"(low));  // a conversion with a masked store is slow
  if (count == V)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), low);
  else
    copy_short(p, reinterpret_cast<const uint8_t *>(&low), count);
}

}}  // namespace adderize
