// Several groups of one channel, on bytes: vectors along the channels, nothing broadcast.
#pragma once

#include "u8_band.h"
#include "u8_epilogue.h"

namespace adderize {
namespace {

constexpr int64_t chunk_channels = 64;  // of a task; filters are packed [tap][channels rounded up to this]
constexpr int64_t chunk_band_bytes = 32 * 1024;
constexpr int64_t widest_strip = 8;
constexpr int64_t longest_word_sum = 65535 / 255;

// A task: an image, a band of output rows, a chunk of channels.
struct DepthwisePlan {
  adderize_shape s;
  const uint8_t *input, *packed;
  uint8_t zero_point;
  adderize_u8_epilogue epilogue;
  int64_t per;  // filters of an input channel
  int64_t padded, band_rows, bands, chunks, columns, buffer_bytes;
  uint8_t *buffers;
  int64_t *offsets;
};

// The input of `channels` filters from `first` on: out[row][column][chunk_channels].
void copy_chunk(const DepthwisePlan &p, int64_t n, int64_t row, int64_t rows, int64_t first, int64_t channels, uint8_t *out) {
  const adderize_shape &s = p.s;
  const uint8_t *image = p.input + n * s.h * s.w * s.c;
  const int64_t left = least(s.padding_w, p.columns), right = most(least(p.columns, s.w + s.padding_w), left);
  for (int64_t i = 0; i < rows; ++i, out += p.columns * chunk_channels) {
    const int64_t y = row + i;
    if (y < 0 || y >= s.h) {
      memset(out, p.zero_point, size_t(p.columns * chunk_channels));
      continue;
    }
    memset(out, p.zero_point, size_t(left * chunk_channels));
    memset(out + right * chunk_channels, p.zero_point, size_t((p.columns - right) * chunk_channels));
    const uint8_t *from = image + (y * s.w + left - s.padding_w) * s.c;
    uint8_t *to = out + left * chunk_channels;
    for (int64_t x = left; x < right; ++x, from += s.c, to += chunk_channels) {
      if (p.per > 1)
        for (int64_t c = 0; c < channels; ++c) to[c] = from[(first + c) / p.per];
      else if (channels == chunk_channels)
        memcpy(to, from + first, chunk_channels);
      else
        copy_short(to, from + first, channels);
    }
  }
}

// sums[q][channel] of Q neighbours and W channels.
template <int Q>
void distance_strip(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w, int64_t w_step,
                    int32_t *sums) {
  for (int64_t t = 0; t < taps;) {
    const bool first = t == 0;
    words acc[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) acc[q] = words{};
    for (const int64_t end = least(t + longest_word_sum, taps); t < end; ++t) {
      const words filter = load_words(w + t * w_step);
      const uint8_t *x = base + offsets[t];
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) acc[q] += distance(load_words(x + q * pixel), filter);
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      ivec part[2], sum[2] = {};
      widen(acc[q], part[0], part[1]);
      if (!first) memcpy(sum, sums + q * W, sizeof sum);
      sum[0] += part[0];
      sum[1] += part[1];
      memcpy(sums + q * W, sum, sizeof sum);
    }
  }
}

using DistanceStrip = void (*)(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w,
                               int64_t w_step, int32_t *sums);
constexpr DistanceStrip distance_strips[widest_strip + 1] = {
    nullptr,           distance_strip<1>, distance_strip<2>, distance_strip<3>, distance_strip<4>,
    distance_strip<5>, distance_strip<6>, distance_strip<7>, distance_strip<8>};

void depthwise_task(const void *context, int64_t task, int worker) {
  const DepthwisePlan &p = *static_cast<const DepthwisePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t chunk = task % p.chunks, band = task / p.chunks % p.bands, n = task / (p.chunks * p.bands);
  const int64_t first = chunk * chunk_channels, channels = least(chunk_channels, s.cout - first);
  const int64_t y0 = band * p.band_rows, rows = least(p.band_rows, s.oh - y0);
  uint8_t *buffer = p.buffers + worker * p.buffer_bytes;
  copy_chunk(p, n, y0 * s.stride_h - s.padding_h, (rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1, first, channels, buffer);
  alignas(64) int32_t sums[widest_strip * W];
  const int64_t strips = ceil_div(s.ow, widest_strip), pixel = s.stride_w * chunk_channels;
  for (int64_t c = 0; c < channels; c += W)
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t i = 0; i < strips; ++i) {
        const int64_t x = i * s.ow / strips, q = (i + 1) * s.ow / strips - x;
        distance_strips[q](buffer + y * s.stride_h * p.columns * chunk_channels + x * pixel + c, pixel, p.offsets, s.kh * s.kw,
                           p.packed + first + c, p.padded, sums);
        finish(p.epilogue, s.cout, {sums, W, q, first + c, least(W, channels - c), ((n * s.oh + y0 + y) * s.ow + x) * s.cout + first + c});
      }
}

int forward_u8_depthwise(const adderize_shape &s, const uint8_t *input, const uint8_t *packed, int zero_point,
                     const adderize_u8_epilogue &epilogue, int threads) {
  DepthwisePlan p = {};
  p.s = s;
  p.input = input;
  p.packed = packed;
  p.zero_point = uint8_t(zero_point);
  p.epilogue = epilogue;
  p.per = s.cout / s.groups;
  p.padded = round_up(s.cout, chunk_channels);
  p.chunks = ceil_div(s.cout, chunk_channels);
  p.columns = (s.ow - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
  const auto bytes_of = [&](int64_t rows) { return ((rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1) * p.columns * chunk_channels; };
  p.band_rows = s.oh;
  while (p.band_rows > 1 && bytes_of(p.band_rows) > chunk_band_bytes) --p.band_rows;
  p.bands = ceil_div(s.oh, p.band_rows);
  if (threads > 1) p.bands = most(p.bands, least(ceil_div(8 * threads, s.n * p.chunks), most(s.oh / 4, 1)));
  p.band_rows = ceil_div(s.oh, p.bands);
  p.bands = ceil_div(s.oh, p.band_rows);
  p.buffer_bytes = bytes_of(p.band_rows);

  const int64_t taps = s.kh * s.kw, table = round_up(taps * int64_t(sizeof(int64_t)), 64);
  uint8_t *memory = reinterpret_cast<uint8_t *>(scratch((table + threads * p.buffer_bytes) / int64_t(sizeof(float))));
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  p.offsets = reinterpret_cast<int64_t *>(memory);
  p.buffers = memory + table;
  for (int64_t t = 0; t < taps; ++t) p.offsets[t] = (t / s.kw * s.dilation_h * p.columns + t % s.kw * s.dilation_w) * chunk_channels;
  parallel(s.n * p.bands * p.chunks, threads, &p, depthwise_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
