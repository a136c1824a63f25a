// A plane of positions, cut into regions whose positions see the same taps, and those into tiles. Beside the border some taps lie
// in the padding and need no arithmetic.
#pragma once

#include "f32/tile.h"
#include "runtime/phases.h"

namespace adderize { namespace {

// `columns` strips of nearly equal width, and the rows taken `rows` at a time.
struct Cut {
  int64_t columns;
  int rows;
};

// Positions and the taps that one of them or more sees.
struct TapSpan {
  Span positions, taps;
};

// A part of a plane, how its tiles are cut, and what they see: `base` floats and `filters` terms from where the plane's first
// position sees its first tap.
struct Region {
  TapSpan y, x;
  bool upright;  // a single column: its positions follow on each other downwards, as if they were a row
  Cut cut;
  Runs runs;
  int64_t base, filters;

  int64_t rows() const { return (upright ? x : y).positions.count(); }
  int64_t columns() const { return (upright ? y : x).positions.count(); }
  // What its tiles read first, in its own directions.
  PixelView pixels(const PixelView &plane) const {
    const float *from = plane.base + y.positions.first * plane.row + x.positions.first * plane.pixel + base;
    return upright ? PixelView{from, plane.row, plane.pixel} : PixelView{from, plane.pixel, plane.row};
  }
};

constexpr int most_spans = 7;         // wider borders stay whole
constexpr int64_t shortest_side = 5;  // of a region along the border: small tiles are slow
constexpr int64_t worthwhile = 45;    // measured: a border that saves less than 1/45 of the terms stays whole

struct Regions {
  Region at[most_spans * most_spans];
  int count = 0;

  const Region *begin() const { return at; }
  const Region *end() const { return at + count; }
  int64_t tiles() const {
    int64_t tiles = 0;
    for (const Region &region : *this) tiles += region.cut.columns * ceil_div(region.rows(), region.cut.rows);
    return tiles;
  }
};

// Positions 4 KiB apart share a set of the first-level cache, which has 8 ways or more: the filters need one.
constexpr int64_t set_floats = 1024, most_in_a_set = 7;
ADDERIZE_INLINE int widest_of(int widest, int64_t pixel) { return pixel % set_floats ? widest : int(min(widest, most_in_a_set)); }

Cut cut_of(int64_t width, int64_t height, int widest) {
  Cut best = {ceil_div(width, widest), 1};
  int64_t best_steps = -1;
  for (int rows = 1; rows <= most_rows && rows <= max(height, 1); ++rows) {
    const int64_t q = rows == 1 ? widest : min(most_in_a_row, widest / rows);
    if (q < 1) break;
    const int64_t columns = ceil_div(width, q), positions = ceil_div(width, columns) * rows;
    // Small tiles wait for their own sums and load more for each term: about 3 positions' time is lost in each.
    const int64_t steps = columns * ceil_div(height, rows) * (positions + 5);
    if (best_steps < 0 || steps < best_steps) {
      best_steps = steps;
      best = {columns, rows};
    }
  }
  return best;
}

// Positions [0, count) by what they see, or -1 where that takes too many spans or saves too little.
int split(const Axis &axis, int64_t count, TapSpan *spans) {
  int found = 0;
  int64_t saved = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Span taps = axis.taps_inside(i);
    saved += axis.taps - taps.count();
    if (found && spans[found - 1].taps.first == taps.first && spans[found - 1].taps.last == taps.last)
      ++spans[found - 1].positions.last;
    else if (found < most_spans)
      spans[found++] = {{i, i + 1}, taps};
    else
      return -1;
  }
  return saved * worthwhile >= count * axis.taps ? found : -1;
}

int spans_of(const Axis &axis, int64_t count, int64_t side, TapSpan *spans) {
  const int found = side < shortest_side ? -1 : split(axis, count, spans);
  if (found > 0) return found;
  spans[0] = {{0, count}, {0, axis.taps}};
  return 1;
}

// What a plane's positions see and how it lies in memory: `pixel` and `row` floats from one tap's step of one to the next,
// `channels` of each seen.
struct Reading {
  Axis vertical, horizontal;
  int64_t pixel, row, channels;
};

Region region_of(const Reading &read, const TapSpan &y, const TapSpan &x, int widest) {
  Region region = {};
  region.y = y;
  region.x = x;
  region.upright = x.positions.count() == 1 && y.positions.count() > 1;
  const int64_t columns = x.taps.count();
  const bool joined = read.pixel == read.channels && (columns == 1 || read.horizontal.advance == 1);
  const int64_t row = read.vertical.advance * read.row, column = read.horizontal.advance * read.pixel;
  const int64_t filter_row = read.horizontal.taps * read.channels;
  region.runs = {y.taps.count(), joined ? 1 : columns, (joined ? columns : 1) * read.channels, row, column, filter_row};
  region.base = y.taps.first * row + x.taps.first * column;
  region.filters = y.taps.first * filter_row + x.taps.first * read.channels;
  const int64_t pixel = region.upright ? read.vertical.step * read.row : read.horizontal.step * read.pixel;
  region.cut = cut_of(region.columns(), region.rows(), widest_of(widest, pixel));
  return region;
}

// Of a plane of rows x columns positions: narrow strips at the sides, the rest from the top to the bottom.
Regions regions_of(const Reading &read, int64_t rows, int64_t columns, int widest) {
  Regions regions;
  TapSpan across[most_spans], down[most_spans];
  const int strips = spans_of(read.horizontal, columns, rows, across);
  for (int i = 0; i < strips; ++i) {
    const int parts = spans_of(read.vertical, rows, across[i].positions.count(), down);
    for (int j = 0; j < parts; ++j) regions.at[regions.count++] = region_of(read, down[j], across[i], widest);
  }
  return regions;
}

}}  // namespace adderize
