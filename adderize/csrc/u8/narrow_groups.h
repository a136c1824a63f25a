// Groups of a few channels, on bytes: vectors along the output channels, "lanes", of all groups, nothing broadcast.
#pragma once

#include "runtime/bands.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "u8/epilogue.h"
#include "u8/rows.h"

namespace adderize { namespace {

// A task's lanes are those of as many whole groups as fit; filters are packed [chunk][term][chunk_lanes], a term being a tap and a
// partner, a channel of the group.
constexpr int64_t chunk_lanes = 64;
constexpr int64_t chunk_bytes = 32 * 1024;
constexpr int64_t longest_word_sum = 65535 / 255;
constexpr int64_t most_partners = 8, most_outputs = 16;  // of a group
constexpr int64_t picked = 16;                           // bytes of pick16
constexpr int widest_byte_strip = 8;                     // positions

// Whether filters are packed like this: those of larger groups fill blocks, see forward.h.
bool in_lanes(const adderize_shape &s) {
  const int64_t cg = s.c / s.groups, og = s.cout / s.groups;
  return s.groups > 1 && cg <= most_partners && og <= most_outputs && cg * og < block_bytes;
}

// sums[q][lane] of Q neighbours and W lanes.
template <int Q>
void byte_strip(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t terms, const uint8_t *w, int32_t *sums) {
  for (int64_t t = 0; t < terms;) {
    const bool first = t == 0;
    words acc[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) acc[q] = words{};
    for (const int64_t end = min(t + longest_word_sum, terms); t < end; ++t) {
      const words filter = load_words(w + t * chunk_lanes);
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

using ByteStrip = void (*)(const uint8_t *base, int64_t pixel, const int64_t *offsets, int64_t terms, const uint8_t *w,
                           int32_t *sums);
// [positions - 1]
constexpr auto byte_strips = table<ByteStrip, widest_byte_strip>([](auto q) -> ByteStrip { return byte_strip<q.value + 1>; });

struct NarrowBytes : ByteLayer {
  int64_t per, partners, terms, pixel;  // outputs and inputs of a group; bytes of a position in a buffer
  Parts chunks, bands;
  int64_t columns;  // that a band sees
  int64_t spread_groups;
  uint8_t sources[most_partners][picked];  // of the lanes of so many groups, in their bytes
  int64_t line_bytes, buffer_bytes;
  int64_t *offsets;
  uint8_t *buffers;

  bool depthwise() const { return per == 1 && partners == 1; }
  int64_t band_bytes(int64_t rows) const { return round_up(forward_window(s, {0, rows}).rows * columns * pixel + 16, 64); }
};

// out[partner][lane] of some lanes that see `from`. Reads and writes up to 15 bytes more.
void spread(const NarrowBytes &p, const uint8_t *from, int64_t lanes, uint8_t *out) {
  const int64_t advance = p.spread_groups * p.partners, step = p.spread_groups * p.per;
  for (int64_t k = 0; k < p.partners; ++k, out += chunk_lanes) {
    const uint8_t *groups = from;
    for (int64_t lane = 0; lane < lanes; lane += step, groups += advance) pick16(groups, p.sources[k], out + lane);
  }
}

// What some lanes see: out[row][column][partner][chunk_lanes].
void copy_chunk(const NarrowBytes &p, int64_t n, const Window &window, const Span &lanes, uint8_t *line, uint8_t *out) {
  const adderize_shape &s = p.s;
  const ByteImage image = {p.input + n * s.h * s.w * s.c, s.h, s.w, s.c, s.c, p.zero_point};
  for (int64_t y = window.row; y < window.row + window.rows; ++y) {
    if (!p.depthwise()) {
      copy_row(image, y, window.column, window.columns, line);
      const uint8_t *from = line + lanes.first / p.per * p.partners;
      for (int64_t x = 0; x < window.columns; ++x, from += s.c, out += p.pixel) spread(p, from, lanes.count(), out);
      continue;
    }
    padded_row(image, y, window.column, window.columns, p.pixel, out, [&](const uint8_t *from, int64_t count, uint8_t *to) {
      from += lanes.first;
      for (int64_t x = 0; x < count; ++x, from += s.c, to += p.pixel)
        if (lanes.count() == chunk_lanes)
          memcpy(to, from, chunk_lanes);
        else
          copy_short(to, from, lanes.count());
    });
    out += window.columns * p.pixel;
  }
}

void narrow_byte_task(const NarrowBytes &p, int64_t number, int worker) {
  const adderize_shape &s = p.s;
  TaskIndex index = {number};
  const int64_t chunk = index.take(p.chunks.count);
  const Span lanes = p.chunks[chunk], rows = p.bands[index.take(p.bands.count)];
  const int64_t n = index.rest, strips = ceil_div(s.ow, widest_byte_strip);
  uint8_t *line = p.buffers + worker * p.buffer_bytes, *buffer = line + p.line_bytes;
  copy_chunk(p, n, forward_window(s, rows), lanes, line, buffer);
  alignas(64) int32_t sums[widest_byte_strip * W];
  for (int64_t lane = 0; lane < lanes.count(); lane += W)
    for (int64_t y = 0; y < rows.count(); ++y)
      for (int64_t i = 0; i < strips; ++i) {
        const Span xs = share_of(s.ow, strips, i);
        const int64_t q = xs.count(), channel = lanes.first + lane, position = (n * s.oh + rows.first + y) * s.ow + xs.first;
        const uint8_t *base = buffer + (y * s.stride_h * p.columns + xs.first * s.stride_w) * p.pixel + lane;
        const uint8_t *w = p.packed + chunk * p.terms * chunk_lanes + lane;
        byte_strips[q - 1](base, s.stride_w * p.pixel, p.offsets, p.terms, w, sums);
        finish(p.epilogue, s.cout, {sums, W, q, channel, min(W, lanes.count() - lane), position * s.cout + channel});
      }
}

void forward_u8_narrow(const ByteLayer &layer, int threads) {
  NarrowBytes p = {};
  static_cast<ByteLayer &>(p) = layer;
  const adderize_shape &s = p.s;
  const int64_t taps = s.kh * s.kw;
  p.per = s.cout / s.groups;
  p.partners = s.c / s.groups;
  p.terms = taps * p.partners;
  p.pixel = p.partners * chunk_lanes;
  p.chunks = parts_of(s.cout, chunk_lanes / p.per * p.per);
  p.columns = forward_window(s, {0, 1}).columns;
  p.spread_groups = picked / max(p.per, p.partners);
  for (int64_t k = 0; k < p.partners; ++k)
    for (int64_t lane = 0; lane < p.spread_groups * p.per; ++lane) p.sources[k][lane] = uint8_t(lane / p.per * p.partners + k);
  const int64_t wanted = threads > 1 ? ceil_div(8 * threads, s.n * p.chunks.count) : 1;
  p.bands = bands_of(s.oh, chunk_bytes * p.partners, min(wanted, s.oh / 4), [&](int64_t rows) { return p.band_bytes(rows); });
  p.line_bytes = p.depthwise() ? 0 : round_up(p.columns * s.c + 16, 64);
  p.buffer_bytes = p.line_bytes + p.band_bytes(p.bands.size);
  allocate([&](Arena &arena) {
    arena.take(p.offsets, p.terms);
    arena.take(p.buffers, threads * p.buffer_bytes);
  });
  for (int64_t t = 0; t < p.terms; ++t) {
    const int64_t tap = t / p.partners, position = tap / s.kw * s.dilation_h * p.columns + tap % s.kw * s.dilation_w;
    p.offsets[t] = position * p.pixel + t % p.partners * chunk_lanes;
  }
  parallel(s.n * p.bands.count * p.chunks.count, threads, [&](int64_t number, int worker) { narrow_byte_task(p, number, worker); });
}

}}  // namespace adderize
