// Whole numbers: rounding, spans of them, and what lies inside an image.
#pragma once

#include <stdint.h>

#define ADDERIZE_INLINE inline __attribute__((always_inline))

// Here and in every header below nothing is shared: each instruction set's copy is its own, the linker must not mix them.
namespace adderize { namespace {

ADDERIZE_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
ADDERIZE_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
ADDERIZE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ADDERIZE_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
ADDERIZE_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Span {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// Those of `count` points at base, base + advance, ... that lie in [0, size): taps of a position, or positions of a tap.
ADDERIZE_INLINE Span inside(int64_t base, int64_t advance, int64_t count, int64_t size) {
  const int64_t first = base < 0 ? min(ceil_div(-base, advance), count) : 0;
  const int64_t last = base < size ? min((size - 1 - base) / advance + 1, count) : 0;
  return {first, max(first, last)};
}

}}  // namespace adderize
