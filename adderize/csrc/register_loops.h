// The arithmetic of each kernel on operands that stay in registers: what the processor could do at most.
#pragma once

#include "kernels.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

// The compiler takes v for another value: nothing that is computed from it leaves the loop or is computed once for all sums.
template <class T>
ADDERIZE_INLINE void renew(T &v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
}

struct LoopOperands {
  float x, weight, grad;
};

// sum = term(sum, p) for P sums side by side, `rounds` times. The total of all their lanes.
template <int P, class Term>
ADDERIZE_INLINE double sum_terms(int64_t rounds, Term term) {
  vec acc[P];
  each<P>(ADDERIZE_EACH(p) { acc[p.value] = vec{}; });
  for (int64_t i = 0; i < rounds; ++i) each<P>(ADDERIZE_EACH(p) { acc[p.value] = term(acc[p.value], p); });
  double sum = 0;
  each<P>(ADDERIZE_EACH(p) {
    for (int lane = 0; lane < V; ++lane) sum += double(acc[p.value][lane]);
  });
  return sum;
}

__attribute__((noinline)) double multiply_loop(int64_t rounds, const LoopOperands &operands) {
  vec x = all(operands.x);
  const vec weight = all(operands.weight);
  return sum_terms<sum_registers[0]>(rounds, [&](vec acc, auto) __attribute__((always_inline)) {
    renew(x);
    return fma(x, weight, acc);
  });
}

__attribute__((noinline)) double maxima_loop(int64_t rounds, const LoopOperands &operands) {
  vec x = all(operands.x);
  const vec weight = all(operands.weight), one = hidden_one();
  return sum_terms<sum_registers[0]>(rounds, [&](vec acc, auto) __attribute__((always_inline)) {
    renew(x);
    return add(acc, maximum(weight, x), one);
  });
}

__attribute__((noinline)) double clip_loop(int64_t rounds, const LoopOperands &operands) {
  vec x = all(operands.x);
  const vec weight = all(operands.weight), grad = all(operands.grad), one = hidden_one();
  return sum_terms<clip_registers>(rounds, [&](vec acc, auto p) __attribute__((always_inline)) {
    renew(x);
    return fma(grad, clip(clip_difference<p.value>(weight, x, one), one), acc);
  });
}

__attribute__((noinline)) double sign_loop(int64_t rounds, const LoopOperands &operands) {
  vec x = all(operands.x * quick_signs.scale);
  const vec weight = all(operands.weight * quick_signs.scale), grad = all(operands.grad), one = hidden_one();
  const double sum = sum_terms<sign_registers>(rounds, [&](vec acc, auto p) __attribute__((always_inline)) {
    renew(x);
    return fma(grad, quick_sign(sign_difference<p.value>(x, weight, one), one), acc);
  });
  return sum / double(quick_signs.unit);
}

__attribute__((noinline)) double byte_loop(int64_t rounds, const LoopOperands &operands) {
  uint8_t bytes[block_taps], filters[block_bytes];
  memset(bytes, int(operands.x), sizeof bytes);
  memset(filters, int(operands.weight), sizeof filters);
  ByteTaps x = broadcast_taps(bytes);
  const ByteBlock weight = load_block(filters);
  int32_t sums[byte_registers][V > block_channels ? V : block_channels] = {};
  for (int64_t left = rounds; left > 0;) {
    const int64_t count = min(left, longest_block_sum);
    BlockSum acc[byte_registers];
    each<byte_registers>(ADDERIZE_EACH(p) { acc[p.value] = BlockSum{}; });
    for (int64_t i = 0; i < count; ++i)
      each<byte_registers>(ADDERIZE_EACH(p) {
        renew(x);
        add_distances(acc[p.value], x, weight);
      });
    each<byte_registers>(ADDERIZE_EACH(p) { store_sums<1>(acc + p.value, sums[p.value]); });
    left -= count;
  }
  double sum = 0;
  for (const auto &block : sums)
    for (int64_t channel = 0; channel < block_channels; ++channel) sum += block[channel];
  return sum;
}

struct RegisterLoop {
  double (*run)(int64_t rounds, const LoopOperands &);
  int64_t pairs;  // of a round
};

void register_loop(int form, int64_t rounds, const float operands[3], int threads, int64_t *pairs, double *total) {
  static constexpr RegisterLoop loops[] = {{multiply_loop, sum_registers[0] * V},
                                           {maxima_loop, sum_registers[0] * V},
                                           {clip_loop, clip_registers * V},
                                           {sign_loop, sign_registers * V},
                                           {byte_loop, byte_registers * block_bytes}};
  const RegisterLoop &loop = loops[form];
  const LoopOperands values = {operands[0], operands[1], operands[2]};
  double *sums = nullptr;
  allocate([&](Arena &arena) { arena.take(sums, threads); });
  parallel(threads, threads, [&](int64_t task, int) { sums[task] = loop.run(rounds, values); });
  *pairs = threads * rounds * loop.pairs;
  *total = 0;
  for (int i = 0; i < threads; ++i) *total += sums[i];
}

}}  // namespace adderize
