// From integer distances to bytes or floats. Compiled without contraction: a fused multiply-add would round differently.
#pragma once

#include "kernels.h"
#include "u8_simd.h"

namespace adderize {
namespace {

// Sums of `positions` positions, `step` apart, for `channels` channels from `channel` on; their first output is element `out`.
struct Distances {
  const int32_t *sums;
  int64_t step, positions, channel, channels, out;
};

template <bool with_residual, bool floats>
void finish_as(const adderize_u8_epilogue &e, int64_t cout, const Distances &d) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, the low bits of the sum
  const vec residual_scale = all(e.residual_scale), low = all(e.low), high = all(e.high);
  for (int64_t c = 0; c < d.channels; c += V) {
    const int64_t count = least(V, d.channels - c);
    const vec scale = load(e.scale + d.channel + c, count), shift = load(e.shift + d.channel + c, count);
    int64_t out = d.out + c;
    for (int64_t q = 0; q < d.positions; ++q, out += cout) {
      ivec sum;
      memcpy(&sum, d.sums + q * d.step + c, sizeof sum);
      vec v = __builtin_convertvector(sum, vec) * scale + shift;
      if (with_residual) v += residual_scale * __builtin_convertvector(load_bytes(e.residual + out, count), vec);
      v = minimum(high, maximum(low, v));
      if (floats)
        store(static_cast<float *>(e.output) + out, v, count);
      else
        store_bytes(static_cast<uint8_t *>(e.output) + out, (ivec)(v + rounder), count);
    }
  }
}

// The sums are read by whole vectors: up to V - 1 past the last one.
ADDERIZE_INLINE void finish(const adderize_u8_epilogue &e, int64_t cout, const Distances &d) {
  if (e.float_output)
    e.residual ? finish_as<true, true>(e, cout, d) : finish_as<false, true>(e, cout, d);
  else
    e.residual ? finish_as<true, false>(e, cout, d) : finish_as<false, false>(e, cout, d);
}

}  // namespace
}  // namespace adderize
