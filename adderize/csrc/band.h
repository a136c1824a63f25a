// Zero-padded copies of a few rows of an image, and sums over patches of it.
#pragma once

#include "simd.h"

namespace adderize {
namespace {

constexpr int64_t band_floats = 48 * 1024;  // 192 KiB: a band stays in the second-level cache beside the filters
constexpr int64_t wanted_tasks = 48;

// One image's channels [0, channels) of `stride` a position, H x W.
struct Image {
  const float *data;
  int64_t h, w, channels, stride;
};

// Rows [row, row + rows) and columns [column, column + columns), which may lie outside the image.
struct Window {
  int64_t row, rows, column, columns;
};

void copy_window(const Image &image, const Window &window, float *out) {
  const int64_t c = image.channels;
  const int64_t left = least(most(-window.column, 0), window.columns);
  const int64_t right = most(least(image.w - window.column, window.columns), left);
  for (int64_t i = 0; i < window.rows; ++i, out += window.columns * c) {
    const int64_t y = window.row + i;
    if (y < 0 || y >= image.h) {
      memset(out, 0, size_t(window.columns * c) * sizeof(float));
      continue;
    }
    memset(out, 0, size_t(left * c) * sizeof(float));
    const float *from = image.data + (y * image.w + window.column + left) * image.stride;
    if (c == image.stride) {
      memcpy(out + left * c, from, size_t((right - left) * c) * sizeof(float));
    } else {
      for (int64_t j = left; j < right; ++j, from += image.stride) memcpy(out + j * c, from, size_t(c) * sizeof(float));
    }
    memset(out + right * c, 0, size_t((window.columns - right) * c) * sizeof(float));
  }
}

// What a worker will most likely touch next, on its way from memory a few cache lines with every tile of the present work.
struct Upcoming {
  struct Stream {
    const char *at, *end;
    int64_t step;
  } streams[3];
  int count = 0;

  void add(const float *first, int64_t floats, int64_t tiles) {
    const char *at = reinterpret_cast<const char *>(first);
    streams[count++] = {at, at + floats * 4, round_up(ceil_div(floats * 4, tiles), 64)};
  }
  void add(const Image &image, const Window &window, int64_t tiles) {
    const int64_t row = image.w * image.stride, first = most(window.row, 0), last = least(window.row + window.rows, image.h);
    if (first < last) add(image.data + first * row, (last - first) * row, tiles);
  }
  ADDERIZE_INLINE void fetch() {
    for (int i = 0; i < count; ++i) {
      Stream &s = streams[i];
      for (const char *stop = s.at + least(s.step, s.end - s.at); s.at < stop; s.at += 64) __builtin_prefetch(s.at, 0, 2);
    }
  }
};

#if defined(__GNUC__) && !defined(__clang__)
template <int S>
ADDERIZE_INLINE vec fold(vec a, vec b) {
  ivec kept, moved;
  for (int i = 0; i < V; ++i) {
    kept[i] = i & S ? V + i : i;
    moved[i] = (i & S ? V + i : i) ^ S;
  }
  return __builtin_shuffle(a, b, kept) + __builtin_shuffle(a, b, moved);
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
#else
ADDERIZE_INLINE vec totals(vec *v) {
  vec out;
  for (int i = 0; i < V; ++i) out[i] = total(v[i]);
  return out;
}
#endif

// The same for one to three channels: vectors along the positions.
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
  float largest = 0;
  for (int j = 0; j < V; ++j) largest = high[j] > largest ? high[j] : largest;
  return total(negative) == 0 ? 0 : largest;
}

constexpr int64_t short_sum = 16 * V;

ADDERIZE_INLINE Sums short_lane_sums(const float *p, int64_t count) {
  Sums sums = {};
  for (; count >= V; p += V, count -= V) {
    const vec v = load(p);
    sums = sums + Sums{v, absolute(v)};
  }
  if (count > 0) {
    const vec v = load(p, count);
    sums = sums + Sums{v, absolute(v)};
  }
  return sums;
}
// Pairwise: a long sum in one accumulator loses digits.
Sums long_lane_sums(const float *p, int64_t count) {
  if (count <= short_sum) return short_lane_sums(p, count);
  const int64_t half = round_up(count / 2, V);
  return long_lane_sums(p, half) + long_lane_sums(p + half, count - half);
}
// Lane l: the sum of p[i], and of its magnitudes, over i = l mod V.
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
  float largest = 0;
  for (int j = 0; j < V; ++j) largest = high[j] > largest ? high[j] : largest;
  for (; i < positions; ++i) {
    const Sums s = lane_sums(x + i * stride, channels);
    const float size = total(s.magnitude);
    sums[i] = total(s.plain);
    negative = negative || !(total(s.magnitude - s.plain) == 0);
    largest = size > largest ? size : largest;
  }
  return negative ? largest : 0;
}

}  // namespace
}  // namespace adderize
