// Vectors of V floats and what every instruction set does with them alike. An instruction set's own file defines V and includes
// this.
#pragma once

#include <string.h>

#include "runtime/integers.h"

namespace adderize { namespace {

typedef float vec __attribute__((vector_size(V * 4)));
typedef int32_t ivec __attribute__((vector_size(V * 4)));
typedef uint32_t uvec __attribute__((vector_size(V * 4)));  // whose sums and products wrap around
// Channels of groups side by side, as 16-bit words.
constexpr int W = 2 * V;
typedef uint16_t words __attribute__((vector_size(2 * W)));

// A T of unaligned memory.
template <class T>
ADDERIZE_INLINE T read(const void *p) {
  T value;
  memcpy(&value, p, sizeof value);
  return value;
}

ADDERIZE_INLINE vec all(float x) { return vec{} + x; }
ADDERIZE_INLINE vec load(const float *p) { return read<vec>(p); }
ADDERIZE_INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

// Signs of differences in an instruction less: quick_sign(scale * a - scale * b, one) is unit * sgn(a - b) for numbers that are 0
// or whose magnitude lies in [least, most), a zero b being -0.
struct QuickSign {
  float scale, unit, least, most;
};

// body(Constant<0>{}), ..., body(Constant<P - 1>{}): an array indexed by constants alone stays in registers.
template <int K>
struct Constant {
  static constexpr int value = K;
};
template <int P, int K = 0, class Body>
ADDERIZE_INLINE constexpr void each(Body body) {
  if constexpr (K < P) {
    body(Constant<K>{});
    each<P, K + 1>(body);
  }
}
#define ADDERIZE_EACH(k) [&](auto k) __attribute__((always_inline))

// table[k] = entry(Constant<k>{}).
template <class Entry, int P>
struct Table {
  Entry entries[P];
  constexpr const Entry &operator[](int64_t i) const { return entries[i]; }
};
template <class Entry, int P, class Make>
constexpr Table<Entry, P> table(Make make) {
  Table<Entry, P> made = {};
  each<P>([&](auto k) { made.entries[k.value] = make(k); });
  return made;
}

// Filters of bytes are packed in blocks of 8 channels x 8 taps, so that one layout serves every instruction set: psadbw adds 8
// neighbours.
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

}}  // namespace adderize
