// From integer distances to bytes, floats or integers. Compiled without contraction: a fused multiply-add would round differently.
#pragma once

#include "kernels.h"
#include "simd/simd.h"

namespace adderize { namespace {

// What every kernel of the forward pass is given.
struct ByteLayer {
  adderize_shape s;
  const uint8_t *input, *packed;
  uint8_t zero_point;
  ByteEpilogue epilogue;
};

// Sums of `positions` positions, `step` apart, for `channels` channels from `channel` on; their first output is element `out`.
struct Distances {
  const int32_t *sums;
  int64_t step, positions, channel, channels, out;
};

// Everything is copied into locals: a byte that is stored might change what lies in memory.
template <bool with_residual, bool floats>
void finish_as(const adderize_u8_epilogue &e, int64_t cout, const Distances &d) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, the low bits of the sum
  const vec residual_scale = all(e.residual_scale), low = all(e.low), high = all(e.high);
  const int64_t positions = d.positions, channels = d.channels, step = d.step;
  const float *scales = e.scale + d.channel, *shifts = e.shift + d.channel;
  for (int64_t c = 0; c < channels; c += V) {
    const int64_t count = min(V, channels - c);
    const vec scale = load(scales + c, count), shift = load(shifts + c, count);
    const int32_t *sums = d.sums + c;
    const uint8_t *residual = e.residual + (with_residual ? d.out + c : 0);
    float *out_floats = static_cast<float *>(e.output) + d.out + c;
    uint8_t *out_bytes = static_cast<uint8_t *>(e.output) + d.out + c;
    const auto finish_position = [&](int64_t lanes) {
      vec v = __builtin_convertvector(read<ivec>(sums), vec) * scale + shift;
      if (with_residual) v += residual_scale * __builtin_convertvector(load_bytes(residual, lanes), vec);
      v = minimum(high, maximum(low, v));
      if (floats)
        store(out_floats, v, lanes);
      else
        store_bytes(out_bytes, (ivec)(v + rounder), lanes);
      sums += step, residual += cout, out_floats += cout, out_bytes += cout;
    };
    if (count == V)
      for (int64_t q = 0; q < positions; ++q) finish_position(V);
    else
      for (int64_t q = 0; q < positions; ++q) finish_position(count);
  }
}

enum class Residual { none, bytes, integers };

template <Residual residual, bool integers>
void shift_as(const adderize_u8_shift_epilogue &e, int64_t cout, const Distances &d) {
  const uvec residual_factor = uvec{} + uint32_t(e.residual_factor);
  const ivec low = ivec{} + e.low, high = ivec{} + e.high;
  const int64_t positions = d.positions, channels = d.channels, step = d.step;
  const int fraction = e.fraction;
  for (int64_t c = 0; c < channels; c += V) {
    const int64_t count = min(V, channels - c);
    const uvec factor = (uvec)load_integers(e.factor + d.channel + c, count),
               bias = (uvec)load_integers(e.bias + d.channel + c, count);
    const int32_t *sums = d.sums + c;
    const int64_t first = d.out + c;
    const uint8_t *added_bytes = static_cast<const uint8_t *>(e.residual) + (residual == Residual::bytes ? first : 0);
    const int32_t *added_integers = static_cast<const int32_t *>(e.residual) + (residual == Residual::integers ? first : 0);
    int32_t *out_integers = static_cast<int32_t *>(e.output) + first;
    uint8_t *out_bytes = static_cast<uint8_t *>(e.output) + first;
    const auto finish_position = [&](int64_t lanes) {
      uvec v = read<uvec>(sums) * factor + bias;
      if (residual == Residual::bytes) v += (uvec)load_bytes(added_bytes, lanes) * residual_factor;
      if (residual == Residual::integers) v += (uvec)load_integers(added_integers, lanes) * residual_factor;
      ivec y = (ivec)v >> fraction;
      y = y < low ? low : y;
      y = y > high ? high : y;
      if (integers)
        store_integers(out_integers, y, lanes);
      else
        store_bytes(out_bytes, y, lanes);
      sums += step, added_bytes += cout, added_integers += cout, out_integers += cout, out_bytes += cout;
    };
    if (count == V)
      for (int64_t q = 0; q < positions; ++q) finish_position(V);
    else
      for (int64_t q = 0; q < positions; ++q) finish_position(count);
  }
}

template <bool integers>
ADDERIZE_INLINE void shift(const adderize_u8_shift_epilogue &e, int64_t cout, const Distances &d) {
  if (!e.residual)
    shift_as<Residual::none, integers>(e, cout, d);
  else if (e.int32_residual)
    shift_as<Residual::integers, integers>(e, cout, d);
  else
    shift_as<Residual::bytes, integers>(e, cout, d);
}

// The sums are read by whole vectors.
ADDERIZE_INLINE void finish(const ByteEpilogue &epilogue, int64_t cout, const Distances &d) {
  if (epilogue.shifted)
    return epilogue.shifted->int32_output ? shift<true>(*epilogue.shifted, cout, d) : shift<false>(*epilogue.shifted, cout, d);
  const adderize_u8_epilogue &e = *epilogue.scaled;
  if (e.float_output)
    e.residual ? finish_as<true, true>(e, cout, d) : finish_as<false, true>(e, cout, d);
  else
    e.residual ? finish_as<true, false>(e, cout, d) : finish_as<false, false>(e, cout, d);
}

}}  // namespace adderize
