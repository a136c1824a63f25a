// Whatever the compiler makes of its vectors of four floats.
#pragma once

namespace adderize { namespace {
constexpr int V = 4;
}}  // namespace adderize

#include "simd/unmasked.h"

namespace adderize { namespace {

constexpr bool has_spare_multipliers = false, clip_is_one_instruction = false, pick_is_quick = false;
constexpr int sum_registers[2] = {12, 5}, clip_registers = 6, byte_registers = 2, most_blocks = 1, sign_registers = 4;

ADDERIZE_INLINE vec load(const float *p, int64_t count) {
  if (count == V) return load(p);
  vec v = {};
  memcpy(&v, p, size_t(count) * sizeof(float));
  return v;
}
ADDERIZE_INLINE vec maximum(vec a, vec b) { return a > b ? a : b; }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return a < b ? a : b; }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
ADDERIZE_INLINE vec fused_difference(vec a, vec b, vec c) { return a * b - c; }
ADDERIZE_INLINE vec fused_remainder(vec a, vec b, vec c) { return c - a * b; }
ADDERIZE_INLINE void hide(vec &) {}
ADDERIZE_INLINE vec clip(vec d, vec one) { return maximum(minimum(d, one), -one); }
ADDERIZE_INLINE vec nearest_integers(vec v) {
  for (int i = 0; i < V; ++i) v[i] = __builtin_rintf(v[i]);
  return v;
}

constexpr QuickSign quick_signs = {1, 1, 0, __builtin_inff()};
ADDERIZE_INLINE vec quick_sign(vec d, vec) { return sign(d); }

ADDERIZE_INLINE vec broadcast(const float *p) { return all(*p); }
ADDERIZE_INLINE vec maximum(vec a, const float *b) { return maximum(a, broadcast(b)); }
ADDERIZE_INLINE vec fma(const float *a, vec b, vec c) { return fma(broadcast(a), b, c); }

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t words8 __attribute__((vector_size(16)));
using ByteTaps = bytes16;
struct ByteBlock {
  bytes16 channels[4];  // two in each
};
struct BlockSum {
  words8 sums[4];
};
constexpr int64_t longest_block_sum = 65535 / 510;  // in 16 bits: they are emptied after so many blocks

ADDERIZE_INLINE ByteTaps broadcast_taps(const uint8_t *p) {
  typedef int64_t halves __attribute__((vector_size(16)));
  return (ByteTaps)(halves{} + read<int64_t>(p));
}
ADDERIZE_INLINE ByteBlock load_block(const uint8_t *p) { return read<ByteBlock>(p); }
ADDERIZE_INLINE void add_distances(BlockSum &to, ByteTaps x, const ByteBlock &w) {
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

ADDERIZE_INLINE words load_words(const uint8_t *p) {
  typedef uint8_t bytes8 __attribute__((vector_size(W)));
  return __builtin_convertvector(read<bytes8>(p), words);
}
ADDERIZE_INLINE words distance(words a, words b) {
  typedef int16_t signed_words __attribute__((vector_size(2 * W)));  // whose maximum SSE2 has
  const signed_words d = (signed_words)(a - b);
  return (words)(d > -d ? d : -d);
}
ADDERIZE_INLINE void widen(words v, ivec &low, ivec &high) {
  for (int i = 0; i < V; ++i) {
    low[i] = v[i];
    high[i] = v[V + i];
  }
}

// out[i] = from[at[i]] for 16 bytes, from memory to memory: here a vector of them is slow to fill.
ADDERIZE_INLINE void pick16(const uint8_t *from, const uint8_t *at, uint8_t *out) {
  for (int i = 0; i < 16; ++i) out[i] = from[at[i]];
}

ADDERIZE_INLINE ivec load_bytes(const uint8_t *p, int64_t count) {
  ivec v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
ADDERIZE_INLINE void store_bytes(uint8_t *p, ivec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = uint8_t(v[i]);
}

}}  // namespace adderize
