// The forward pass on bytes, for groups of more than one channel.
#pragma once

#include "runtime/bands.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "u8/epilogue.h"
#include "u8/rows.h"
#include "u8/tile.h"

namespace adderize { namespace {

constexpr int64_t band_bytes = 128 * 1024;  // stays in the second-level cache beside the filters
constexpr int64_t flat_bytes = 32 * 1024;

// How the taps of a filter lie in memory, which follows from its shape alone. Every tap's channels are padded to whole blocks, or,
// where that would waste more than a quarter, those of a kernel row together ("unfolded").
struct FilterTaps {
  bool unfolded;
  int64_t step;   // bytes of a tap, or of an unfolded kernel row
  int64_t total;  // of a filter
};

FilterTaps filter_taps(int64_t cg, int64_t kh, int64_t kw) {
  const int64_t apart = kw * round_up(cg, block_taps), joined = round_up(kw * cg, block_taps);
  if (4 * joined <= 3 * apart) return {true, joined, kh * joined};
  return {false, round_up(cg, block_taps), kh * apart};
}

// A task: an image of a group, a band of outputs, a chunk of its blocks of channels. A band is some rows or, of a single row, some
// columns.
struct BytePlan : ByteLayer {
  int64_t cg, og, blocks;
  FilterTaps taps;
  bool in_place;
  BandWork work;
  int64_t pixel, row;  // bytes between neighbouring outputs' patches
  ByteRuns runs;
  int64_t band_columns, line_bytes, buffer_bytes;
  uint8_t *buffers;
  int64_t *offsets;
  int64_t *held;  // of every worker: the band that its buffer holds, or -1

  Span rows(int64_t band) const { return s.oh > 1 ? work.bands[band] : Span{0, 1}; }
  Span columns(int64_t band) const { return s.oh > 1 ? Span{0, s.ow} : work.bands[band]; }
  int64_t rows_seen(int64_t rows) const { return reach(rows, s.stride_h, s.kh, s.dilation_h); }
  int64_t columns_seen(int64_t columns) const { return reach(columns, s.stride_w, s.kw, s.dilation_w); }
  int64_t row_bytes(int64_t columns) const {
    if (in_place) return s.w * s.c;
    return (taps.unfolded ? columns : columns_seen(columns)) * taps.step;
  }
};

// A kernel row's taps that are not neighbours: one by one.
void copy_dilated(const BytePlan &p, const uint8_t *line, int64_t columns, uint8_t *out) {
  for (int64_t x = 0; x < columns; ++x, out += p.taps.step) {
    for (int64_t t = 0; t < p.s.kw; ++t)
      memcpy(out + t * p.cg, line + (x * p.s.stride_w + t * p.s.dilation_w) * p.cg, size_t(p.cg));
    memset(out + p.s.kw * p.cg, 0, size_t(p.taps.step - p.s.kw * p.cg));
  }
}

void fill_rows(const BytePlan &p, const BandTask &task, uint8_t *buffer) {
  const adderize_shape &s = p.s;
  const ByteImage image = {p.input + task.n * s.h * s.w * s.c + task.group * p.cg, s.h, s.w, p.cg, s.c, p.zero_point};
  const Span band_rows = p.rows(task.band), band_columns = p.columns(task.band);
  const int64_t rows = p.rows_seen(band_rows.count()), columns = p.columns_seen(band_columns.count());
  const bool direct = p.cg == p.taps.step;
  uint8_t *line = buffer, *out = buffer + p.line_bytes;
  for (int64_t i = 0; i < rows; ++i, out += p.row_bytes(p.band_columns)) {
    const int64_t y = band_rows.first * s.stride_h - s.padding_h + i, x = band_columns.first * s.stride_w - s.padding_w;
    copy_row(image, y, x, columns, direct ? out : line);
    if (direct) continue;
    if (!p.taps.unfolded)
      copy_in_blocks(line, p.cg, p.cg, columns, out);
    else if (s.dilation_w == 1 || s.kw == 1)
      copy_in_blocks(line, s.stride_w * p.cg, s.kw * p.cg, band_columns.count(), out);
    else
      copy_dilated(p, line, band_columns.count(), out);
  }
}

// What a strip sees first, from memory into the first-level cache.
void prefetch_strip(const BytePlan &p, const uint8_t *base, int64_t columns) {
  for (int64_t x = 0; x < columns; ++x, base += p.pixel)
    for (int64_t i = 0; i < p.runs.length; i += 64) __builtin_prefetch(base + i);
}

// Part `index` of `parts` of the filters that come next, into the second-level cache.
ADDERIZE_INLINE void prefetch_filters(const uint8_t *w, int64_t bytes, int64_t index, int64_t parts) {
  const Span part = share_of(bytes, parts, index);
  for (int64_t i = round_up(part.first, 64); i < part.last; i += 64) __builtin_prefetch(w + i, 0, 2);
}

// A tile of channel blocks: its filters, those that come next and whether the positions are on their way, too.
struct BlockTile {
  int64_t channel, channels;
  const uint8_t *w;
  int64_t next_bytes;
  bool ahead;
};

// One of them over all positions of a band, the first of which is at `base`.
template <int B>
void byte_plane(const BytePlan &p, const BandTask &task, const uint8_t *base, const BlockTile &tile) {
  alignas(64) int32_t sums[byte_registers * sum_step(B)];
  const Span rows = p.rows(task.band), columns = p.columns(task.band);
  const int64_t strips = ceil_div(columns.count(), byte_registers), filter = p.taps.total * block_channels;
  for (int64_t y = 0; y < rows.count(); ++y)
    for (int64_t i = 0; i < strips; ++i) {
      const Span xs = share_of(columns.count(), strips, i);
      const int64_t q = xs.count(), strip = y * strips + i;
      const uint8_t *at = base + y * p.row + xs.first * p.pixel;
      if (strip > 0) prefetch_filters(tile.w + B * filter, tile.next_bytes, strip - 1, rows.count() * strips - 1);
      if (tile.ahead && i + 1 < strips) prefetch_strip(p, at + q * p.pixel, q);
      byte_tiles<B>[q - 1](at, p.pixel, p.runs, tile.w, filter, sums);
      const int64_t position = (task.n * p.s.oh + rows.first + y) * p.s.ow + columns.first + xs.first;
      finish(p.epilogue, p.s.cout, {sums, sum_step(B), q, tile.channel, tile.channels, position * p.s.cout + tile.channel});
    }
}

// The chunks of a band follow on each other: a worker most likely holds it still.
void byte_task(const BytePlan &p, int64_t number, int worker) {
  const adderize_shape &s = p.s;
  TaskIndex index = {number};
  const Span chunk = p.work.chunks[index.take(p.work.chunks.count)];
  const BandTask task = p.work.copy(index.rest);
  const uint8_t *base;
  if (p.in_place) {
    const int64_t y = p.rows(task.band).first * s.stride_h, x = p.columns(task.band).first * s.stride_w;
    base = p.input + ((task.n * s.h + y) * s.w + x) * s.c + task.group * p.cg;
  } else {
    uint8_t *buffer = p.buffers + worker * p.buffer_bytes;
    if (p.held[worker] != index.rest) fill_rows(p, task, buffer);
    p.held[worker] = index.rest;
    base = buffer + p.line_bytes;
  }
  for (int64_t block = chunk.first; block < chunk.last; block += most_blocks) {
    const int64_t first = block * block_channels, here = min(most_blocks, chunk.last - block);
    const int64_t filter = p.taps.total * block_channels;
    const BlockTile tile = {task.group * p.og + first, min(here * block_channels, p.og - first),
                            p.packed + (task.group * p.blocks + block) * filter,
                            min(most_blocks, chunk.last - block - here) * filter, p.in_place && block == chunk.first};
    (here == 1 ? byte_plane<1> : byte_plane<most_blocks>)(p, task, base, tile);
  }
}

// A 1x1 kernel of unit stride sees all images as one row; a kernel that covers the whole image, as a row of so many columns each.
void flatten_bytes(adderize_shape &s, bool unfolded) {
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
void divide_bytes(BytePlan &p, int threads) {
  const adderize_shape &s = p.s;
  const int64_t wanted = threads == 1 ? 1 : ceil_div(8 * threads, s.n * s.groups);
  p.work.images = s.n;
  p.work.groups = s.groups;
  p.band_columns = s.ow;
  if (s.oh > 1) {
    const auto bytes = [&](int64_t rows) { return p.rows_seen(rows) * p.row_bytes(s.ow); };
    p.work.bands = bands_of(s.oh, band_bytes, min(wanted, s.oh / 4), bytes);
  } else {
    const int64_t most_columns = max(flat_bytes / (p.taps.total + p.og), 4 * byte_registers);
    const int64_t bands = max(ceil_div(s.ow, most_columns), min(wanted, s.ow / (4 * byte_registers)));
    p.band_columns = min(round_up(ceil_div(s.ow, bands), byte_registers), s.ow);
    p.work.bands = parts_of(s.ow, p.band_columns);
  }
  const int64_t tiles = ceil_div(p.blocks, most_blocks);
  p.work.chunks = parts_of(p.blocks, at_most(tiles, min(tiles, ceil_div(wanted, p.work.bands.count))).size * most_blocks);
}

void forward_u8_blocks(const ByteLayer &layer, int threads) {
  BytePlan p = {};
  static_cast<ByteLayer &>(p) = layer;
  const adderize_shape &s = p.s;
  p.cg = s.c / s.groups;
  p.og = s.cout / s.groups;
  p.blocks = ceil_div(p.og, block_channels);
  p.taps = filter_taps(p.cg, s.kh, s.kw);
  flatten_bytes(p.s, p.taps.unfolded);
  p.in_place = !s.padding_h && !s.padding_w && p.cg == p.taps.step;
  // Whether a kernel row is one run.
  bool joined = p.taps.unfolded || s.dilation_w == 1 || s.kw == 1;
  if (p.in_place && s.groups > 1) joined = s.kw == 1;
  divide_bytes(p, threads);

  const int64_t column = p.in_place ? s.c : p.taps.step, step = p.row_bytes(p.band_columns);
  p.line_bytes = p.cg == p.taps.step ? 0 : round_up(p.columns_seen(p.band_columns) * p.cg + block_taps, 64);
  p.buffer_bytes = p.in_place ? 0 : p.line_bytes + round_up(p.rows_seen(p.rows(0).count()) * step, 64);
  p.pixel = p.taps.unfolded ? column : s.stride_w * column;
  p.row = s.stride_h * step;
  const int64_t runs = s.kh * (joined ? 1 : s.kw);
  allocate([&](Arena &arena) {
    arena.take(p.offsets, runs);
    arena.take(p.held, threads);
    arena.take(p.buffers, threads * p.buffer_bytes);
  });
  for (int64_t i = 0; i < threads; ++i) p.held[i] = -1;
  for (int64_t i = 0; i < runs; ++i)
    p.offsets[i] = joined ? i * s.dilation_h * step : i / s.kw * s.dilation_h * step + i % s.kw * s.dilation_w * column;
  p.runs = {runs, joined && !p.taps.unfolded ? s.kw * p.taps.step : p.taps.step, p.offsets};
  parallel(p.work.tasks(), threads, [&](int64_t number, int worker) { byte_task(p, number, worker); });
}

}}  // namespace adderize
