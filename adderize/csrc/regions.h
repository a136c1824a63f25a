// The parts of a plane whose positions see the same taps: beside the border some taps lie in the padding and need no arithmetic.
#pragma once

#include "tiles.h"

namespace adderize {
namespace {

// One axis of a plane: tap t of position i lies at base + i * step + t * advance, in the padding unless that is in [0, size).
struct TapAxis {
  int64_t base, step, taps, advance, size;
};

// Positions [first, first + count), and the taps [tap, tap + taps) that one of them or more sees.
struct TapSpan {
  int64_t first, count, tap, taps;
};

// A part of a plane, how its tiles are cut, and what they see: `base` floats and `filters` terms from where the plane's first position
// sees its first tap.
struct Region {
  TapSpan y, x;
  bool upright;  // a single column: its positions follow on each other downwards, as if they were a row
  Cut cut;
  Runs runs;
  int64_t base, filters;

  int64_t rows() const { return upright ? x.count : y.count; }
  int64_t columns() const { return upright ? y.count : x.count; }
};

constexpr int most_spans = 7;         // wider borders stay whole
constexpr int64_t shortest_side = 5;  // of a region along the border: small tiles are slow
constexpr int64_t worthwhile = 45;    // measured: a border that saves less than 1/45 of the terms stays whole
constexpr int most_regions = most_spans * most_spans;

TapSpan taps_of(const TapAxis &axis, int64_t position) {
  const int64_t at = axis.base + position * axis.step, advance = most(axis.advance, 1);
  if (at >= 0 && at + (axis.taps - 1) * advance < axis.size) return {position, 1, 0, axis.taps};
  const int64_t first = at < 0 ? least(ceil_div(-at, advance), axis.taps) : 0;
  const int64_t last = at < axis.size ? least((axis.size - 1 - at) / advance + 1, axis.taps) : 0;
  return {position, 1, first, most(last - first, 0)};
}

// Positions [0, count) by what they see, or -1 where that takes too many spans or saves too little.
int split(const TapAxis &axis, int64_t count, TapSpan *spans) {
  int found = 0;
  int64_t saved = 0;
  for (int64_t i = 0; i < count; ++i) {
    const TapSpan here = taps_of(axis, i);
    saved += axis.taps - here.taps;
    if (found && spans[found - 1].tap == here.tap && spans[found - 1].taps == here.taps)
      ++spans[found - 1].count;
    else if (found < most_spans)
      spans[found++] = here;
    else
      return -1;
  }
  return saved * worthwhile >= count * axis.taps ? found : -1;
}

int spans_of(const TapAxis &axis, int64_t count, int64_t side, TapSpan *spans) {
  const int found = side < shortest_side ? -1 : split(axis, count, spans);
  if (found > 0) return found;
  spans[0] = {0, count, 0, axis.taps};
  return 1;
}

// How the taps of both axes lie in memory: `pixel` and `row` floats from one position of what is read to the next, `channels` of each
// seen.
struct Reading {
  int64_t pixel, row, channels;
};

Region region_of(const TapAxis &vertical, const TapAxis &horizontal, const TapSpan &y, const TapSpan &x, const Reading &read, int widest) {
  Region region = {};
  region.y = y;
  region.x = x;
  region.upright = x.count == 1 && y.count > 1;
  const bool joined = read.pixel == read.channels && (x.taps == 1 || horizontal.advance == 1);
  const int64_t row = vertical.advance * read.row, column = horizontal.advance * read.pixel;
  region.runs = {y.taps, joined ? 1 : x.taps, (joined ? x.taps : 1) * read.channels, row, column, horizontal.taps * read.channels};
  region.base = y.tap * row + x.tap * column;
  region.filters = (y.tap * horizontal.taps + x.tap) * read.channels;
  const int64_t pixel = region.upright ? vertical.step * read.row : horizontal.step * read.pixel;
  region.cut = cut(region.columns(), region.rows(), widest_of(widest, pixel));
  return region;
}

// Cuts a plane of rows x columns positions into regions: narrow strips at the sides, the rest from the top to the bottom.
int regions_of(const TapAxis &vertical, const TapAxis &horizontal, int64_t rows, int64_t columns, const Reading &read, int widest,
               Region *regions) {
  TapSpan across[most_spans], down[most_spans];
  const int strips = spans_of(horizontal, columns, rows, across);
  int count = 0;
  for (int i = 0; i < strips; ++i) {
    const int parts = spans_of(vertical, rows, across[i].count, down);
    for (int j = 0; j < parts; ++j) regions[count++] = region_of(vertical, horizontal, down[j], across[i], read, widest);
  }
  return count;
}

int64_t tiles_in(const Region *regions, int count) {
  int64_t tiles = 0;
  for (int i = 0; i < count; ++i)
    tiles += regions[i].cut.columns * ceil_div(regions[i].rows(), regions[i].cut.rows);
  return tiles;
}

// A row of positions that all see the same `channels` floats.
Region row_region(int64_t count, int64_t channels, int64_t pixel, int widest) {
  Region region = {};
  region.y = {0, 1, 0, 1};
  region.x = {0, count, 0, 1};
  region.cut = {ceil_div(count, widest_of(widest, pixel)), 1};
  region.runs = {1, 1, channels, 0, 0, 0};
  return region;
}

// Where a region's tiles begin to read, in its own directions.
Grid grid_of(const Region &region, const Grid &plane) {
  const float *base = plane.base + region.y.first * plane.row + region.x.first * plane.pixel + region.base;
  return region.upright ? Grid{base, plane.row, plane.pixel} : Grid{base, plane.pixel, plane.row};
}

}  // namespace
}  // namespace adderize
