// Vectors of the instruction set that this file is compiled for, and the inner operations of every kernel.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(ADDERIZE_AVX512) || defined(ADDERIZE_AVX2)
#include <immintrin.h>
#endif

#define ADDERIZE_INLINE inline __attribute__((always_inline))

namespace adderize {
namespace {  // each instruction set's copy is its own

#if defined(ADDERIZE_AVX512)
constexpr int V = 16;
#elif defined(ADDERIZE_AVX2)
constexpr int V = 8;
#else
constexpr int V = 4;
#endif
typedef float vec __attribute__((vector_size(V * 4)));
typedef int32_t ivec __attribute__((vector_size(V * 4)));

ADDERIZE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ADDERIZE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
ADDERIZE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ADDERIZE_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// body(Constant<0>{}), ..., body(Constant<P - 1>{}): an array indexed by constants alone stays in registers.
template <int K>
struct Constant {
  static constexpr int value = K;
};
template <int P, int K = 0, class Body>
ADDERIZE_INLINE void each(Body body) {
  if constexpr (K < P) {
    body(Constant<K>{});
    each<P, K + 1>(body);
  }
}
#define ADDERIZE_EACH(k) [&](auto k) __attribute__((always_inline))

ADDERIZE_INLINE vec all(float x) { return vec{} + x; }
ADDERIZE_INLINE vec load(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
ADDERIZE_INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

// An integer load: the float broadcast takes a slot of the floating-point units on some cores.
ADDERIZE_INLINE vec broadcast(const float *p) {
#if defined(ADDERIZE_AVX512) || defined(ADDERIZE_AVX2)
  int32_t bits;
  memcpy(&bits, p, 4);
#if defined(ADDERIZE_AVX512)
  return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
#else
  return _mm256_castsi256_ps(_mm256_set1_epi32(bits));
#endif
#else
  return all(*p);
#endif
}

// A sum of numbers and the sum of their magnitudes.
struct Sums {
  vec plain, magnitude;
};
ADDERIZE_INLINE Sums operator+(const Sums &a, const Sums &b) { return {a.plain + b.plain, a.magnitude + b.magnitude}; }

#if defined(ADDERIZE_AVX512)

ADDERIZE_INLINE vec load(const float *p, int64_t count) { return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p); }
ADDERIZE_INLINE void store(float *p, vec v, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), v); }
ADDERIZE_INLINE vec maximum(vec a, vec b) { return _mm512_max_ps(a, b); }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return _mm512_min_ps(a, b); }
ADDERIZE_INLINE vec absolute(vec a) { return _mm512_abs_ps(a); }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
// A NaN counts as 0, as it does for torch.sign.
ADDERIZE_INLINE vec sign(vec d) {
  const vec positive = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, vec{}, _CMP_GT_OQ), all(1.0f));
  return _mm512_mask_mov_ps(positive, _mm512_cmp_ps_mask(d, vec{}, _CMP_LT_OQ), all(-1.0f));
}

#else

ADDERIZE_INLINE vec load(const float *p, int64_t count) {
  if (count == V) return load(p);
  vec v = {};
  memcpy(&v, p, size_t(count) * sizeof(float));
  return v;
}
ADDERIZE_INLINE void store(float *p, vec v, int64_t count) {
  if (count == V)
    store(p, v);
  else
    memcpy(p, &v, size_t(count) * sizeof(float));
}
ADDERIZE_INLINE vec absolute(vec a) { return (vec)((ivec)a & 0x7fffffff); }
ADDERIZE_INLINE vec sign(vec d) {
  return (vec)(((ivec)all(1.0f) & (ivec)(d > vec{})) | ((ivec)all(-1.0f) & (ivec)(d < vec{})));
}
#if defined(ADDERIZE_AVX2)
ADDERIZE_INLINE vec maximum(vec a, vec b) { return _mm256_max_ps(a, b); }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return _mm256_min_ps(a, b); }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#else
ADDERIZE_INLINE vec maximum(vec a, vec b) { return a > b ? a : b; }
ADDERIZE_INLINE vec minimum(vec a, vec b) { return a < b ? a : b; }
ADDERIZE_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif

#endif

// The same with one operand broadcast from memory. AVX-512 has it in the instruction, which saves a slot of the decoder, the
// bottleneck of the inner loops; GCC has no pattern for the maximum and undoes the fma where a neighbour reads the same number.
ADDERIZE_INLINE vec maximum(vec a, const float *b) {
#if defined(ADDERIZE_AVX512)
  vec out;
  asm("vmaxps %2%{1to16%}, %1, %0" : "=v"(out) : "v"(a), "m"(*b));
  return out;
#else
  return maximum(a, broadcast(b));
#endif
}
ADDERIZE_INLINE vec fma(const float *a, vec b, vec c) {
#if defined(ADDERIZE_AVX512)
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
  return c;
#else
  return fma(broadcast(a), b, c);
#endif
}

#if defined(ADDERIZE_AVX512)
constexpr bool clip_is_one_instruction = true;
#else
constexpr bool clip_is_one_instruction = false;
#endif
// A NaN may come out as -1 or 1.
ADDERIZE_INLINE vec clip(vec d, vec one) {
#if defined(ADDERIZE_AVX512)
  return _mm512_range_ps(d, one, 2);  // the smaller magnitude with the sign of the first
#else
  return maximum(minimum(d, one), -one);
#endif
}
// minimum and maximum return their second operand where one is NaN: here the NaN survives.
ADDERIZE_INLINE vec clip_keeping_nan(vec d) { return maximum(all(-1.0f), minimum(all(1.0f), d)); }

ADDERIZE_INLINE float total(vec v) {
#if defined(ADDERIZE_AVX512)
  return _mm512_reduce_add_ps(v);
#else
  float sum = 0;
  for (int i = 0; i < V; ++i) sum += v[i];
  return sum;
#endif
}
ADDERIZE_INLINE float lowest(vec v) {
#if defined(ADDERIZE_AVX512)
  return _mm512_reduce_min_ps(v);
#else
  float low = v[0];
  for (int i = 1; i < V; ++i) low = v[i] < low ? v[i] : low;
  return low;
#endif
}

// One, hidden from the compiler: an fma by it moves an addition to the multipliers, which have time to spare.
ADDERIZE_INLINE vec hidden_one() {
  vec one = all(1.0f);
#if defined(ADDERIZE_AVX512) || defined(ADDERIZE_AVX2)
  asm volatile("" : "+v"(one));
#endif
  return one;
}
// a - b, by the multipliers where there are any to spare.
ADDERIZE_INLINE vec subtract(vec a, vec b, vec one) {
#if defined(ADDERIZE_AVX512)
  return _mm512_fmsub_ps(a, one, b);
#elif defined(ADDERIZE_AVX2)
  return _mm256_fmsub_ps(a, one, b);
#else
  (void)one;
  return a - b;
#endif
}
ADDERIZE_INLINE vec add(vec sum, vec term, vec one) {
#if defined(ADDERIZE_AVX512) || defined(ADDERIZE_AVX2)
  return fma(term, one, sum);
#else
  (void)one;
  return sum + term;
#endif
}
ADDERIZE_INLINE vec subtract_product(vec sum, vec term, vec one) {
#if defined(ADDERIZE_AVX512)
  return _mm512_fnmadd_ps(term, one, sum);
#elif defined(ADDERIZE_AVX2)
  return _mm256_fnmadd_ps(term, one, sum);
#else
  (void)one;
  return sum - term;
#endif
}

}  // namespace
}  // namespace adderize
