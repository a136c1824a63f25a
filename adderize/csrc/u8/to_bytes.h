// Floats rounded to bytes.
#pragma once

#include "runtime/bands.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

void to_bytes(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output, int threads) {
  const Parts parts = parts_of(count, 32 * 1024);
  parallel(parts.count, threads, [&](int64_t task, int) {
    const vec scale = all(steps), zero = all(zero_point), top = all(float(levels));
    const auto put = [&](int64_t i, int64_t lanes) {
      const vec q = nearest_integers(load(input + i, lanes) * scale) + zero;
      const vec within = minimum(maximum(q, vec{}), top);  // a NaN becomes 0
      store_bytes(output + i, __builtin_convertvector(within, ivec), lanes);
    };
    const Span part = parts[task];
    const int64_t rest = part.count() % V;
    for (int64_t i = part.first; i < part.last - rest; i += V) put(i, V);
    if (rest) put(part.last - rest, rest);
  });
}

}}  // namespace adderize
