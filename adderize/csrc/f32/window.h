// Zero-padded copies of a window of an image, and what lies ahead in memory.
#pragma once

#include "runtime/bands.h"
#include "simd/simd.h"

namespace adderize { namespace {

constexpr int64_t window_floats = 48 * 1024;  // 192 KiB: a window stays in the second-level cache beside the filters
constexpr int64_t wanted_tasks = 48;
constexpr int64_t flat_positions = 168;  // of a task where the image is one row, read in place

// One image's channels [0, channels) of `stride` a position, H x W.
struct Image {
  const float *data;
  int64_t h, w, channels, stride;
};

void copy_window(const Image &image, const Window &window, float *out) {
  const int64_t c = image.channels;
  const Span columns = inside(window.column, 1, window.columns, image.w);
  for (int64_t i = 0; i < window.rows; ++i, out += window.columns * c) {
    const int64_t y = window.row + i;
    if (y < 0 || y >= image.h) {
      memset(out, 0, size_t(window.columns * c) * sizeof(float));
      continue;
    }
    memset(out, 0, size_t(columns.first * c) * sizeof(float));
    const float *from = image.data + (y * image.w + window.column + columns.first) * image.stride;
    if (c == image.stride)
      memcpy(out + columns.first * c, from, size_t(columns.count() * c) * sizeof(float));
    else
      for (int64_t j = columns.first; j < columns.last; ++j, from += image.stride)
        memcpy(out + j * c, from, size_t(c) * sizeof(float));
    memset(out + columns.last * c, 0, size_t((window.columns - columns.last) * c) * sizeof(float));
  }
}

// What a worker will most likely touch next, on its way from memory a few cache lines with every tile of the present work.
struct Upcoming {
  static constexpr int most_streams = 8;
  struct Stream {
    const char *at, *end;
    int64_t step;
  } streams[most_streams];
  int count = 0;

  void add(const float *first, int64_t floats, int64_t tiles) {
    const char *at = reinterpret_cast<const char *>(first);
    streams[count++] = {at, at + floats * 4, round_up(ceil_div(floats * 4, tiles), 64)};
  }
  void add(const Image &image, const Window &window, int64_t tiles) {
    const int64_t row = image.w * image.stride;
    const Span rows = inside(window.row, 1, window.rows, image.h), columns = inside(window.column, 1, window.columns, image.w);
    const float *first = image.data + (window.row + rows.first) * row;
    if (rows.count() <= 0) return;
    if (columns.count() > image.w / 2) return add(first, rows.count() * row, tiles);
    // Of rows that many windows share, each fetches its own part.
    first += (window.column + columns.first) * image.stride;
    for (int64_t i = 0; i < rows.count() && count < most_streams && columns.count() > 0; ++i)
      add(first + i * row, columns.count() * image.stride, tiles);
  }
  ADDERIZE_INLINE void fetch() {
    for (int i = 0; i < count; ++i) {
      Stream &s = streams[i];
      for (const char *stop = s.at + min(s.step, s.end - s.at); s.at < stop; s.at += 64) __builtin_prefetch(s.at, 0, 2);
    }
  }
};

}}  // namespace adderize
