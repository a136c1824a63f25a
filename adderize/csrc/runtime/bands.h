// How work is divided: rows into bands, channels into chunks, a line of positions into tiles, and a task's number into indices.
#pragma once

#include "adderize.h"
#include "runtime/integers.h"

namespace adderize { namespace {

// [0, total) in parts of one size, the last of which may be smaller.
struct Parts {
  int64_t total, size, count;
  Span operator[](int64_t i) const { return {i * size, min((i + 1) * size, total)}; }
};
inline Parts parts_of(int64_t total, int64_t size) { return {total, size, ceil_div(total, size)}; }
inline Parts at_most(int64_t total, int64_t count) { return parts_of(total, ceil_div(total, count)); }

// Bands of rows as high as fit: `size(rows)` of a band stays within `room`. But at least about `fewest` of them.
template <class Size>
Parts bands_of(int64_t rows, int64_t room, int64_t fewest, Size size) {
  int64_t height = rows;
  while (height > 1 && size(height) > room) --height;
  return at_most(rows, max(ceil_div(rows, height), fewest));
}

// Part i of `parts` of nearly equal width.
ADDERIZE_INLINE Span share_of(int64_t total, int64_t parts, int64_t i) { return {i * total / parts, (i + 1) * total / parts}; }

// A task's number, taken apart from the index that varies fastest to the one that varies slowest, which is the rest.
struct TaskIndex {
  int64_t rest;
  int64_t take(int64_t size) {
    const int64_t index = rest % size;
    rest /= size;
    return index;
  }
};

// A band of an image, a chunk of a group's channels.
struct BandTask {
  int64_t n, band, chunk, group;
};

// All tasks of a layer. Each of its bands is copied by the task that needs it or, if `shared`, once for all chunks.
struct BandWork {
  int64_t images, groups;
  Parts bands, chunks;
  bool shared;

  int64_t copies() const { return bands.count * images * groups; }
  int64_t tasks() const { return copies() * chunks.count; }
  // All bands of a chunk follow on each other: they share its filters.
  BandTask task(int64_t number) const {
    TaskIndex index = {number};
    const int64_t n = index.take(images), band = index.take(bands.count), chunk = index.take(chunks.count);
    return {n, band, chunk, index.rest};
  }
  BandTask copy(int64_t number) const {
    TaskIndex index = {number};
    const int64_t band = index.take(bands.count), n = index.take(images);
    return {n, band, 0, index.rest};
  }
  int64_t buffers(int64_t threads) const { return shared ? copies() : threads; }
  int64_t buffer(const BandTask &task, int64_t worker) const {
    return shared ? (task.group * images + task.n) * bands.count + task.band : worker;
  }
};

// Rows [row, row + rows) and columns [column, column + columns) of an image, some of which may lie outside of it.
struct Window {
  int64_t row, rows, column, columns;
};

// How many rows or columns `count` neighbouring outputs see.
ADDERIZE_INLINE int64_t reach(int64_t count, int64_t stride, int64_t taps, int64_t dilation) {
  return (count - 1) * stride + (taps - 1) * dilation + 1;
}
// What rows of outputs see of the input.
inline Window forward_window(const adderize_shape &s, Span rows) {
  return {rows.first * s.stride_h - s.padding_h, reach(rows.count(), s.stride_h, s.kh, s.dilation_h), -s.padding_w,
          reach(s.ow, s.stride_w, s.kw, s.dilation_w)};
}

}}  // namespace adderize
