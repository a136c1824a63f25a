// Several groups of one channel, on bytes: vectors along the channels, nothing broadcast.
#pragma once

#include "u8_band.h"
#include "u8_epilogue.h"

namespace adderize {
namespace {

constexpr int64_t lane_bytes = 64;        // filters are packed [tap][channels rounded up to this]
constexpr int64_t lane_band_bytes = 32 * 1024;
constexpr int64_t widest_lane_strip = 4;
constexpr int64_t longest_word_sum = 65535 / 255;

// A task: an image, a band of output rows, W channels.
struct BytelanePlan {
  adderize_shape s;
  const uint8_t *input, *packed;
  uint8_t zero_point;
  adderize_u8_epilogue epilogue;
  int64_t per;  // filters of an input channel
  int64_t padded, band_rows, bands, chunks, columns, buffer_bytes;
  uint8_t *buffers;
  int64_t *offsets;
};

// W channels from `first` on: out[row][column][W].
void copy_lane_band(const BytelanePlan &p, int64_t n, int64_t row, int64_t rows, int64_t first, int64_t lanes, uint8_t *out) {
  const adderize_shape &s = p.s;
  const uint8_t *image = p.input + n * s.h * s.w * s.c;
  const ByteImage part = {image + first, s.h, s.w, W, s.c, p.zero_point};
  for (int64_t i = 0; i < rows; ++i, out += p.columns * W) {
    const int64_t y = row + i;
    if (p.per == 1 && lanes == W) {
      copy_row(part, y, -s.padding_w, p.columns, out);
      continue;
    }
    memset(out, p.zero_point, size_t(p.columns * W));
    if (y < 0 || y >= s.h) continue;
    for (int64_t x = most(0, -s.padding_w); x < least(s.w, p.columns - s.padding_w); ++x) {
      const uint8_t *from = image + (y * s.w + x) * s.c;
      uint8_t *to = out + (x + s.padding_w) * W;
      if (p.per == 1)
        memcpy(to, from + first, size_t(lanes));
      else
        for (int64_t l = 0; l < lanes; ++l) to[l] = from[(first + l) / p.per];
    }
  }
}

// sums[q][lane]: even and odd channels are summed apart, in the halves of 16-bit lanes.
template <int Q>
void lane_distances(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w, int64_t w_step,
                    int32_t *sums) {
  for (int64_t t = 0; t < taps;) {
    const bool first = t == 0;
    words even[Q] = {}, odd[Q] = {};
    for (const int64_t end = least(t + longest_word_sum, taps); t < end; ++t) {
      const bytes filter = load_row(w + t * w_step);
      const uint8_t *x = base + offsets[t];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const words d = (words)distance(load_row(x + q * pixel), filter);
        even[q] += d & 255;
        odd[q] += d >> 8;
      }
    }
    for (int q = 0; q < Q; ++q) {
      uint16_t pairs[2][W / 2];
      memcpy(pairs[0], &even[q], W);
      memcpy(pairs[1], &odd[q], W);
      int32_t *to = sums + q * W;
      for (int i = 0; i < W / 2; ++i) {
        to[2 * i] = (first ? 0 : to[2 * i]) + pairs[0][i];
        to[2 * i + 1] = (first ? 0 : to[2 * i + 1]) + pairs[1][i];
      }
    }
  }
}

using LaneDistances = void (*)(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w,
                               int64_t w_step, int32_t *sums);
constexpr LaneDistances lane_strips[widest_lane_strip + 1] = {nullptr, lane_distances<1>, lane_distances<2>, lane_distances<3>,
                                                              lane_distances<4>};

void byte_lane_task(const void *context, int64_t task, int worker) {
  const BytelanePlan &p = *static_cast<const BytelanePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t chunk = task % p.chunks, band = task / p.chunks % p.bands, n = task / (p.chunks * p.bands);
  const int64_t first = chunk * W, lanes = least(W, s.cout - first), y0 = band * p.band_rows, rows = least(p.band_rows, s.oh - y0);
  uint8_t *buffer = p.buffers + worker * p.buffer_bytes;
  copy_lane_band(p, n, y0 * s.stride_h - s.padding_h, (rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1, first, lanes, buffer);
  alignas(64) int32_t sums[widest_lane_strip * W];
  const int64_t strips = ceil_div(s.ow, widest_lane_strip), pixel = s.stride_w * W;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t x = i * s.ow / strips, q = (i + 1) * s.ow / strips - x;
      lane_strips[q](buffer + y * s.stride_h * p.columns * W + x * pixel, pixel, p.offsets, s.kh * s.kw, p.packed + first, p.padded, sums);
      finish(p.epilogue, s.cout, {sums, W, q, first, lanes, ((n * s.oh + y0 + y) * s.ow + x) * s.cout + first});
    }
}

int forward_u8_lanes(const adderize_shape &s, const uint8_t *input, const uint8_t *packed, int zero_point,
                     const adderize_u8_epilogue &epilogue, int threads) {
  BytelanePlan p = {};
  p.s = s;
  p.input = input;
  p.packed = packed;
  p.zero_point = uint8_t(zero_point);
  p.epilogue = epilogue;
  p.per = s.cout / s.groups;
  p.padded = round_up(s.cout, lane_bytes);
  p.chunks = ceil_div(s.cout, W);
  p.columns = (s.ow - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
  const auto bytes_of = [&](int64_t rows) { return ((rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1) * p.columns * W; };
  p.band_rows = s.oh;
  while (p.band_rows > 1 && bytes_of(p.band_rows) > lane_band_bytes) --p.band_rows;
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
  for (int64_t t = 0; t < taps; ++t) p.offsets[t] = (t / s.kw * s.dilation_h * p.columns + t % s.kw * s.dilation_w) * W;
  parallel(s.n * p.bands * p.chunks, threads, &p, byte_lane_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
