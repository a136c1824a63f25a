// The forward pass on bytes, for groups of more than one channel.
#pragma once

#include "u8_band.h"
#include "u8_epilogue.h"
#include "u8_tile.h"

namespace adderize {
namespace {

constexpr int64_t band_bytes = 128 * 1024;  // stays in the second-level cache beside the filters
constexpr int64_t flat_bytes = 32 * 1024;

// How the taps of a filter lie in memory, which follows from its shape alone. Every tap's channels are padded to whole blocks, or,
// where that would waste more than a quarter, those of a kernel row together ("unfolded").
struct FilterTaps {
  bool unfolded;
  int64_t step;   // bytes of a tap, or of an unfolded kernel row
  int64_t total;  // of a filter
};

FilterTaps taps_of(int64_t cg, int64_t kh, int64_t kw) {
  const int64_t apart = kw * round_up(cg, block_taps), joined = round_up(kw * cg, block_taps);
  if (4 * joined <= 3 * apart) return {true, joined, kh * joined};
  return {false, round_up(cg, block_taps), kh * apart};
}

// A task: an image of a group, a band of outputs, a chunk of its blocks of channels. A band is some rows or, of a single row, some
// columns.
struct BytePlan {
  adderize_shape s;
  const uint8_t *input, *packed;
  uint8_t zero_point;
  adderize_u8_epilogue epilogue;
  int64_t cg, og, blocks;
  FilterTaps taps;
  bool in_place;
  int64_t band_rows, band_columns, bands, chunk, chunks;
  int64_t pixel, row;  // bytes between neighbouring outputs' patches
  ByteRuns runs;
  int64_t line_bytes, buffer_bytes;
  uint8_t *buffers;
  int64_t *held;  // of every worker: the band that its buffer holds, or -1
};

struct ByteBand {
  int64_t y, rows, x, columns;
};

ByteBand band_at(const BytePlan &p, int64_t index) {
  if (p.s.oh > 1) return {index * p.band_rows, least(p.band_rows, p.s.oh - index * p.band_rows), 0, p.s.ow};
  return {0, 1, index * p.band_columns, least(p.band_columns, p.s.ow - index * p.band_columns)};
}

int64_t rows_seen(const BytePlan &p, int64_t rows) { return (rows - 1) * p.s.stride_h + (p.s.kh - 1) * p.s.dilation_h + 1; }
int64_t columns_seen(const BytePlan &p, int64_t columns) { return (columns - 1) * p.s.stride_w + (p.s.kw - 1) * p.s.dilation_w + 1; }

int64_t row_bytes(const BytePlan &p, int64_t columns) {
  if (p.in_place) return p.s.w * p.s.c;
  return p.taps.unfolded ? columns * p.taps.step : columns_seen(p, columns) * p.taps.step;
}

// A kernel row's taps that are not neighbours: one by one.
void spread_dilated(const BytePlan &p, const uint8_t *line, int64_t columns, uint8_t *out) {
  for (int64_t x = 0; x < columns; ++x, out += p.taps.step) {
    for (int64_t t = 0; t < p.s.kw; ++t)
      memcpy(out + t * p.cg, line + (x * p.s.stride_w + t * p.s.dilation_w) * p.cg, size_t(p.cg));
    memset(out + p.s.kw * p.cg, 0, size_t(p.taps.step - p.s.kw * p.cg));
  }
}

void fill_band(const BytePlan &p, int64_t n, int64_t group, const ByteBand &band, uint8_t *buffer) {
  const adderize_shape &s = p.s;
  const ByteImage image = {p.input + n * s.h * s.w * s.c + group * p.cg, s.h, s.w, p.cg, s.c, p.zero_point};
  const int64_t rows = rows_seen(p, band.rows), columns = columns_seen(p, band.columns), step = row_bytes(p, p.band_columns);
  uint8_t *line = buffer, *out = buffer + p.line_bytes;
  for (int64_t i = 0; i < rows; ++i, out += step) {
    const bool direct = p.cg == p.taps.step;
    copy_row(image, band.y * s.stride_h - s.padding_h + i, band.x * s.stride_w - s.padding_w, columns, direct ? out : line);
    if (direct) continue;
    if (!p.taps.unfolded)
      spread(line, p.cg, p.cg, columns, out);
    else if (s.dilation_w == 1 || s.kw == 1)
      spread(line, s.stride_w * p.cg, s.kw * p.cg, band.columns, out);
    else
      spread_dilated(p, line, band.columns, out);
  }
}

// What a strip sees first, from memory into the first-level cache.
void prefetch(const BytePlan &p, const uint8_t *base, int64_t columns) {
  for (int64_t x = 0; x < columns; ++x, base += p.pixel)
    for (int64_t i = 0; i < p.runs.length; i += 64) __builtin_prefetch(base + i);
}

// Part `index` of `parts` of the filters that come next, into the second-level cache.
ADDERIZE_INLINE void prefetch_filters(const uint8_t *w, int64_t bytes, int64_t index, int64_t parts) {
  const int64_t end = (index + 1) * bytes / parts;
  for (int64_t i = round_up(index * bytes / parts, 64); i < end; i += 64) __builtin_prefetch(w + i, 0, 2);
}

// One tile of channel blocks over all positions of a band.
template <int B>
void byte_plane(const BytePlan &p, const uint8_t *base, const ByteBand &band, int64_t n, const uint8_t *w, Distances to, bool ahead, int64_t next_bytes) {
  alignas(64) int32_t sums[widest_tile * sum_step(B)];
  const int64_t strips = ceil_div(band.columns, widest_tile), cout = p.s.cout;
  const uint8_t *next = w + B * p.taps.total * block_channels;
  to.sums = sums;
  to.step = sum_step(B);
  for (int64_t y = 0; y < band.rows; ++y)
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t x = i * band.columns / strips;
      to.positions = (i + 1) * band.columns / strips - x;
      to.out = ((n * p.s.oh + band.y + y) * p.s.ow + band.x + x) * cout + to.channel;
      if (y * strips + i > 0) prefetch_filters(next, next_bytes, y * strips + i - 1, band.rows * strips - 1);
      if (ahead && i + 1 < strips) prefetch(p, base + y * p.row + (x + to.positions) * p.pixel, to.positions);
      distance_tile_table[B - 1][to.positions](base + y * p.row + x * p.pixel, p.pixel, p.runs, w, p.taps.total * block_channels, sums);
      finish(p.epilogue, cout, to);
    }
}

void byte_task(const void *context, int64_t task, int worker) {
  const BytePlan &p = *static_cast<const BytePlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t chunk = task % p.chunks, place = task / p.chunks, index = place % p.bands, n = place / p.bands % s.n,
                group = place / (p.bands * s.n);
  const ByteBand band = band_at(p, index);
  const uint8_t *base;
  if (p.in_place) {
    base = p.input + ((n * s.h + band.y * s.stride_h) * s.w + band.x * s.stride_w) * s.c + group * p.cg;
  } else {
    uint8_t *buffer = p.buffers + worker * p.buffer_bytes;
    if (p.held[worker] != place) fill_band(p, n, group, band, buffer);
    p.held[worker] = place;
    base = buffer + p.line_bytes;
  }
  const int64_t end = least((chunk + 1) * p.chunk, p.blocks);
  for (int64_t block = chunk * p.chunk; block < end; block += most_blocks) {
    const int64_t first = block * block_channels, here = least(most_blocks, end - block);
    const uint8_t *w = p.packed + (group * p.blocks + block) * p.taps.total * block_channels;
    const Distances to = {nullptr, 0, 0, group * p.og + first, least(here * block_channels, p.og - first), 0};
    const bool ahead = p.in_place && block == chunk * p.chunk;
    const int64_t next_bytes = least(most_blocks, end - block - here) * p.taps.total * block_channels;
    if (here == 1)
      byte_plane<1>(p, base, band, n, w, to, ahead, next_bytes);
    else
      byte_plane<most_blocks>(p, base, band, n, w, to, ahead, next_bytes);
  }
}

// A 1x1 kernel of unit stride sees all images as one row; a kernel that covers the whole image, as a row of so many columns each.
void flatten(adderize_shape &s, bool unfolded) {
  if (s.padding_h || s.padding_w) return;
  const bool point = s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1;
  const bool whole = !unfolded && s.kh == s.h && s.kw == s.w && s.dilation_h == 1 && s.dilation_w == 1;
  if (!point && !whole) return;
  const int64_t taps = s.kh * s.kw;
  s.w = s.n * s.h * s.w;
  s.ow = s.w / taps;
  s.kw = s.stride_w = taps;
  s.n = s.h = s.oh = s.kh = s.stride_h = 1;
}

// Bands fit the cache; where there are fewer tasks than keep all threads busy they become shorter, then chunks of channels.
void divide(BytePlan &p, int threads) {
  const adderize_shape &s = p.s;
  const int64_t wanted = threads == 1 ? 1 : ceil_div(8 * threads, s.n * s.groups);
  p.band_rows = s.oh;
  p.band_columns = s.ow;
  if (s.oh > 1) {
    while (p.band_rows > 1 && rows_seen(p, p.band_rows) * row_bytes(p, s.ow) > band_bytes) --p.band_rows;
    p.bands = most(ceil_div(s.oh, p.band_rows), least(wanted, s.oh / 4));
    p.band_rows = ceil_div(s.oh, p.bands);
    p.bands = ceil_div(s.oh, p.band_rows);
  } else {
    const int64_t most_columns = most(flat_bytes / (p.taps.total + p.og), 4 * widest_tile);
    p.bands = most(ceil_div(s.ow, most_columns), least(wanted, s.ow / (4 * widest_tile)));
    p.band_columns = round_up(ceil_div(s.ow, most(p.bands, 1)), widest_tile);
    p.bands = ceil_div(s.ow, p.band_columns);
    p.band_columns = least(p.band_columns, s.ow);
  }
  const int64_t tiles = ceil_div(p.blocks, most_blocks);
  p.chunk = ceil_div(tiles, least(tiles, ceil_div(wanted, p.bands))) * most_blocks;
  p.chunks = ceil_div(p.blocks, p.chunk);
}

int forward_u8_blocks(const adderize_shape &shape, const uint8_t *input, const uint8_t *packed, int zero_point,
                      const adderize_u8_epilogue &epilogue, int threads) {
  BytePlan p = {};
  p.s = shape;
  p.input = input;
  p.packed = packed;
  p.zero_point = uint8_t(zero_point);
  p.epilogue = epilogue;
  p.cg = shape.c / shape.groups;
  p.og = shape.cout / shape.groups;
  p.blocks = ceil_div(p.og, block_channels);
  p.taps = taps_of(p.cg, shape.kh, shape.kw);
  flatten(p.s, p.taps.unfolded);
  const adderize_shape &s = p.s;
  bool joined = p.taps.unfolded || s.dilation_w == 1 || s.kw == 1;
  p.in_place = !s.padding_h && !s.padding_w && p.cg == p.taps.step;
  if (p.in_place && s.groups > 1) joined = s.kw == 1;
  divide(p, threads);

  p.line_bytes = p.cg == p.taps.step ? 0 : round_up(columns_seen(p, p.band_columns) * p.cg + block_taps, 64);
  p.buffer_bytes = p.in_place ? 0 : p.line_bytes + round_up(rows_seen(p, p.band_rows) * row_bytes(p, p.band_columns), 64);
  const int64_t column = p.in_place ? s.c : p.taps.step, step = row_bytes(p, p.band_columns);
  p.pixel = p.taps.unfolded ? column : s.stride_w * column;
  p.row = s.stride_h * step;

  const int64_t run_count = s.kh * (joined ? 1 : s.kw);
  const int64_t tables = round_up((run_count + threads) * int64_t(sizeof(int64_t)), 64);
  uint8_t *memory = reinterpret_cast<uint8_t *>(scratch((tables + threads * p.buffer_bytes) / int64_t(sizeof(float))));
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  int64_t *offsets = reinterpret_cast<int64_t *>(memory);
  p.held = offsets + run_count;
  p.buffers = memory + tables;
  for (int64_t i = 0; i < threads; ++i) p.held[i] = -1;
  p.runs = {run_count, joined && !p.taps.unfolded ? s.kw * p.taps.step : p.taps.step, offsets};
  for (int64_t i = 0; i < run_count; ++i)
    offsets[i] = joined ? i * s.dilation_h * step : i / s.kw * s.dilation_h * step + i % s.kw * s.dilation_w * column;
  parallel(s.n * s.groups * p.bands * p.chunks, threads, &p, byte_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
