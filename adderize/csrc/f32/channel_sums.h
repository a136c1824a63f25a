// Sums of an image over its channels and over patches, for Y = patch sum + filter sum - 2 * maxima.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

ADDERIZE_INLINE float largest_lane(vec v) {
  float largest = 0;
  for (int i = 0; i < V; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// channel_sums of one to three channels: vectors along the positions.
template <int C>
float few_channel_sums(const float *x, int64_t positions, int64_t stride, float *sums) {
  vec high = {}, negative = {};
  for (int64_t i = 0; i < positions; i += V) {
    vec sum = {}, size = {};
    if (i + V <= positions) {
#pragma GCC unroll 4
      for (int k = 0; k < C; ++k) {
        vec v;
#pragma GCC unroll 16
        for (int j = 0; j < V; ++j) v[j] = x[(i + j) * stride + k];
        sum += v;
        size += absolute(v);
      }
      store(sums + i, sum);
    } else {
      for (int64_t j = 0; j < positions - i; ++j)
        for (int k = 0; k < C; ++k) {
          const float v = x[(i + j) * stride + k];
          sum[j] += v;
          size[j] += v < 0 ? -v : v;
        }
      store(sums + i, sum, positions - i);
    }
    high = maximum(high, size);
    negative += size - sum;
  }
  return total(negative) == 0 ? 0 : largest_lane(high);
}

// Lane l: the sum of p[i], and of its magnitudes, over i = l mod V. Pairwise: a long sum in one accumulator loses digits.
constexpr int64_t short_sum = 16 * V;
ADDERIZE_INLINE Sums short_lane_sums(const float *p, int64_t count) {
  Sums sums = {};
  for (; count >= V; p += V, count -= V) sums = sums + sums_of(load(p));
  return count > 0 ? sums + sums_of(load(p, count)) : sums;
}
Sums long_lane_sums(const float *p, int64_t count) {
  if (count <= short_sum) return short_lane_sums(p, count);
  const int64_t half = round_up(count / 2, V);
  return long_lane_sums(p, half) + long_lane_sums(p + half, count - half);
}
ADDERIZE_INLINE Sums lane_sums(const float *p, int64_t count) {
  return count <= short_sum ? short_lane_sums(p, count) : long_lane_sums(p, count);
}

// sums[i] = sum of the channels at position i. Returns the largest sum of magnitudes of any position, or 0 where no number is
// negative: the two sums are one.
float channel_sums(const float *x, int64_t positions, int64_t stride, int64_t channels, float *sums) {
  if (channels == 1) return few_channel_sums<1>(x, positions, stride, sums);
  if (channels == 2) return few_channel_sums<2>(x, positions, stride, sums);
  if (channels == 3) return few_channel_sums<3>(x, positions, stride, sums);
  vec high = {};
  bool negative = false;
  int64_t i = 0;
  for (; i + V <= positions; i += V) {
    vec plain[V], magnitude[V], difference = {};
    for (int j = 0; j < V; ++j) {
      const Sums s = lane_sums(x + (i + j) * stride, channels);
      plain[j] = s.plain;
      magnitude[j] = s.magnitude;
      difference += s.magnitude - s.plain;
    }
    const vec sum = totals(plain);
    store(sums + i, sum);
    const bool same = total(difference) == 0;
    negative = negative || !same;
    high = maximum(high, same ? sum : totals(magnitude));
  }
  float largest = largest_lane(high);
  for (; i < positions; ++i) {
    const Sums s = lane_sums(x + i * stride, channels);
    const float size = total(s.magnitude);
    sums[i] = total(s.plain);
    negative = negative || !(total(s.magnitude - s.plain) == 0);
    largest = size > largest ? size : largest;
  }
  return negative ? largest : 0;
}

// sums[x] = sum over the taps of a patch of what is at from + x * stride: down the columns, which `column` holds meanwhile, then
// along the row. A row of `from` has `width` numbers; all three are read and written by whole vectors.
void patch_sums(const adderize_shape &s, const float *from, int64_t width, float *column, float *sums) {
  for (int64_t x = 0; x < width; x += V) {
    vec sum = load(from + x);
    for (int64_t t = 1; t < s.kh; ++t) sum += load(from + x + t * s.dilation_h * width);
    store(column + x, sum);
  }
  if (s.stride_w == 1) {
    for (int64_t x = 0; x < s.ow; x += V) {
      vec sum = load(column + x);
      for (int64_t t = 1; t < s.kw; ++t) sum += load(column + x + t * s.dilation_w);
      store(sums + x, sum);
    }
  } else {
    for (int64_t x = 0; x < s.ow; ++x) {
      float sum = 0;
      for (int64_t t = 0; t < s.kw; ++t) sum += column[x * s.stride_w + t * s.dilation_w];
      sums[x] = sum;
    }
  }
}

}}  // namespace adderize
