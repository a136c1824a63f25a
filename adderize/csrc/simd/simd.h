// The vectors of the instruction set that this file is compiled for, and what every kernel builds from its operations.
#pragma once

#if defined(ADDERIZE_AVX512)
#include "simd/avx512.h"
#elif defined(ADDERIZE_AVX2)
#include "simd/avx2.h"
#else
#include "simd/portable.h"
#endif

namespace adderize { namespace {

#if defined(ADDERIZE_FEW_TILES)  // sanitizers compile every shape for seconds
constexpr bool few_tiles = true;
#else
constexpr bool few_tiles = false;
#endif

// Moves do not look at what they move.
ADDERIZE_INLINE ivec load_integers(const int32_t *p, int64_t count) {
  return (ivec)load(reinterpret_cast<const float *>(p), count);
}
ADDERIZE_INLINE void store_integers(int32_t *p, ivec v, int64_t count) { store(reinterpret_cast<float *>(p), (vec)v, count); }

// A sum of numbers and the sum of their magnitudes.
struct Sums {
  vec plain, magnitude;
};
ADDERIZE_INLINE Sums operator+(const Sums &a, const Sums &b) { return {a.plain + b.plain, a.magnitude + b.magnitude}; }
ADDERIZE_INLINE Sums sums_of(vec v) { return {v, absolute(v)}; }

// minimum and maximum return their second operand where one is NaN: here the NaN survives, in `clip` it may come out as -1 or 1.
ADDERIZE_INLINE vec clip_keeping_nan(vec d) { return maximum(all(-1.0f), minimum(all(1.0f), d)); }

// One, hidden from the compiler: an fma by it moves an addition to the multipliers, where there are any to spare.
ADDERIZE_INLINE vec hidden_one() {
  vec one = all(1.0f);
  hide(one);
  return one;
}
ADDERIZE_INLINE vec add(vec sum, vec term, vec one) { return has_spare_multipliers ? fma(term, one, sum) : sum + term; }
ADDERIZE_INLINE vec subtract(vec a, vec b, vec one) { return has_spare_multipliers ? fused_difference(a, one, b) : a - b; }
// A clip's argument, of the term of this number: half of the subtractions balance a clip of one instruction, all of them one of
// two.
template <int number>
ADDERIZE_INLINE vec clip_difference(vec a, vec b, vec one) {
  constexpr bool multiply = !clip_is_one_instruction || number % 2 == 0;
  return multiply ? subtract(a, b, one) : a - b;
}
// A quick sign's: as a clip's where it is a clip.
template <int number>
ADDERIZE_INLINE vec sign_difference(vec a, vec b, vec one) {
  return clip_is_one_instruction ? clip_difference<number>(a, b, one) : a - b;
}
ADDERIZE_INLINE vec subtract_product(vec sum, vec term, vec one) {
  return has_spare_multipliers ? fused_remainder(term, one, sum) : sum - term;
}

// Sums of P positions in registers. A long sum in one accumulator loses digits: it moves to memory, at place(p), every so many
// terms.
template <int P, int64_t every>
struct Accumulators {
  vec acc[P];
  int64_t room = every;
  bool fresh = true;  // nothing is in memory yet

  ADDERIZE_INLINE Accumulators() {
    each<P>(ADDERIZE_EACH(p) { acc[p.value] = vec{}; });
  }
  template <class Place>
  ADDERIZE_INLINE void flush(Place place) {
    each<P>(ADDERIZE_EACH(p) {
      float *to = place(p.value);
      store(to, fresh ? acc[p.value] : acc[p.value] + load(to));
      acc[p.value] = vec{};
    });
    room = every;
    fresh = false;
  }
  // After the last term.
  template <class Place>
  ADDERIZE_INLINE void finish(Place place) {
    if (room < every || fresh) flush(place);
  }
};

// Lane i takes lane at[i] of a, or lane at[i] - V of b.
ADDERIZE_INLINE vec pick(vec a, vec b, ivec at) {
#if defined(__GNUC__) && !defined(__clang__)
  return __builtin_shuffle(a, b, at);
#else
  vec out;
  for (int i = 0; i < V; ++i) out[i] = at[i] < V ? a[at[i]] : b[at[i] - V];
  return out;
#endif
}
// The same where at[i] = from(i), which the compiler knows.
template <class From>
ADDERIZE_INLINE vec shuffle(vec a, vec b, From from) {
  ivec at;
  for (int i = 0; i < V; ++i) at[i] = from(i);
  return pick(a, b, at);
}

template <int S>
ADDERIZE_INLINE vec fold(vec a, vec b) {
  const auto kept = [](int i) { return i & S ? V + i : i; };
  return shuffle(a, b, kept) + shuffle(a, b, [&](int i) { return kept(i) ^ S; });
}
// Lane i of the result is the total of v[i].
ADDERIZE_INLINE vec totals(vec *v) {
#pragma GCC unroll 16
  for (int i = 0; i < V; i += 2) v[i] = fold<1>(v[i], v[i + 1]);
#pragma GCC unroll 16
  for (int i = 0; i < V; i += 4) v[i] = fold<2>(v[i], v[i + 2]);
  if constexpr (V >= 8) {
#pragma GCC unroll 16
    for (int i = 0; i < V; i += 8) v[i] = fold<4>(v[i], v[i + 4]);
  }
  if constexpr (V >= 16) v[0] = fold<8>(v[0], v[8]);
  return v[0];
}

template <int S>
ADDERIZE_INLINE void swap_blocks(vec *v) {
#pragma GCC unroll 16
  for (int i = 0; i < V; ++i) {
    if (i & S) continue;
    const vec a = v[i], b = v[i + S];
    v[i] = shuffle(a, b, [](int lane) { return lane & S ? V + (lane ^ S) : lane; });
    v[i + S] = shuffle(a, b, [](int lane) { return lane & S ? V + lane : lane ^ S; });
  }
}
ADDERIZE_INLINE void transpose(vec *v) {
  swap_blocks<1>(v);
  swap_blocks<2>(v);
  if constexpr (V >= 8) swap_blocks<4>(v);
  if constexpr (V >= 16) swap_blocks<8>(v);
}

}}  // namespace adderize
