// Several groups of one channel, on bytes: vectors along the channels, nothing broadcast.
#pragma once

#include "runtime/bands.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "u8/epilogue.h"
#include "u8/rows.h"

namespace adderize { namespace {

constexpr int64_t chunk_channels = 64;  // of a task; filters are packed [tap][channels rounded up to this]
constexpr int64_t chunk_bytes = 32 * 1024;
constexpr int64_t longest_word_sum = 65535 / 255;
constexpr int widest_byte_strip = 8;  // positions

// sums[q][channel] of Q neighbours and W channels.
template <int Q>
void byte_strip(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w, int64_t w_step,
                int32_t *sums) {
  for (int64_t t = 0; t < taps;) {
    const bool first = t == 0;
    words acc[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) acc[q] = words{};
    for (const int64_t end = min(t + longest_word_sum, taps); t < end; ++t) {
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

using ByteStrip = void (*)(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t taps, const uint8_t *w,
                           int64_t w_step, int32_t *sums);
// [positions - 1]
constexpr auto byte_strips = table<ByteStrip, widest_byte_strip>([](auto q) -> ByteStrip { return byte_strip<q.value + 1>; });

// The input of some filters, which lies in every chunk_channels bytes: out[row][column][chunk_channels].
void copy_chunk(const ByteLayer &p, int64_t n, const Window &window, const Span &filters, uint8_t *out) {
  const adderize_shape &s = p.s;
  const int64_t per = s.cout / s.groups, channels = filters.count();
  const ByteImage image = {p.input + n * s.h * s.w * s.c, s.h, s.w, s.c, s.c, p.zero_point};
  for (int64_t i = 0; i < window.rows; ++i, out += window.columns * chunk_channels)
    padded_row(image, window.row + i, window.column, window.columns, chunk_channels, out,
               [&](const uint8_t *from, int64_t count, uint8_t *to) {
                 for (int64_t x = 0; x < count; ++x, from += s.c, to += chunk_channels)
                   if (per > 1)
                     for (int64_t c = 0; c < channels; ++c) to[c] = from[(filters.first + c) / per];
                   else if (channels == chunk_channels)
                     memcpy(to, from + filters.first, chunk_channels);
                   else
                     copy_short(to, from + filters.first, channels);
               });
}

void forward_u8_depthwise(const ByteLayer &layer, int threads) {
  const adderize_shape &s = layer.s;
  const Parts chunks = parts_of(s.cout, chunk_channels);
  const auto buffer_bytes = [&](int64_t rows) {
    const Window window = forward_window(s, {0, rows});
    return window.rows * window.columns * chunk_channels;
  };
  const int64_t wanted = threads > 1 ? ceil_div(8 * threads, s.n * chunks.count) : 1, taps = s.kh * s.kw;
  const Parts bands = bands_of(s.oh, chunk_bytes, min(wanted, s.oh / 4), buffer_bytes);
  const int64_t columns = forward_window(s, bands[0]).columns, pixel = s.stride_w * chunk_channels;
  const int64_t strips = ceil_div(s.ow, widest_byte_strip), packed_channels = round_up(s.cout, chunk_channels);
  int64_t *offsets = nullptr;
  uint8_t *buffers = nullptr;
  allocate([&](Arena &arena) {
    arena.take(offsets, taps);
    arena.take(buffers, threads * buffer_bytes(bands.size));
  });
  for (int64_t t = 0; t < taps; ++t) offsets[t] = (t / s.kw * s.dilation_h * columns + t % s.kw * s.dilation_w) * chunk_channels;

  parallel(s.n * bands.count * chunks.count, threads, [&](int64_t number, int worker) {
    TaskIndex index = {number};
    const Span filters = chunks[index.take(chunks.count)], rows = bands[index.take(bands.count)];
    const int64_t n = index.rest, channels = filters.count();
    uint8_t *buffer = buffers + worker * buffer_bytes(bands.size);
    copy_chunk(layer, n, forward_window(s, rows), filters, buffer);
    alignas(64) int32_t sums[widest_byte_strip * W];
    for (int64_t c = 0; c < channels; c += W)
      for (int64_t y = 0; y < rows.count(); ++y)
        for (int64_t i = 0; i < strips; ++i) {
          const Span xs = share_of(s.ow, strips, i);
          const int64_t q = xs.count(), channel = filters.first + c, position = (n * s.oh + rows.first + y) * s.ow + xs.first;
          const uint8_t *base = buffer + y * s.stride_h * columns * chunk_channels + xs.first * pixel + c;
          byte_strips[q - 1](base, pixel, offsets, taps, layer.packed + channel, packed_channels, sums);
          finish(layer.epilogue, s.cout, {sums, W, q, channel, min(W, channels - c), position * s.cout + channel});
        }
  });
}

}}  // namespace adderize
