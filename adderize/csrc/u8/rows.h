// Copies of rows of an image of bytes, padded with the zero point, in the order in which the micro-kernel reads them.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

// One image's channels [0, channels) of `stride` a position, H x W.
struct ByteImage {
  const uint8_t *data;
  int64_t h, w, channels, stride;
  uint8_t padding;
};

template <int C>
void copy_strided_by(const uint8_t *from, int64_t stride, int64_t count, uint8_t *out) {
  for (int64_t i = 0; i < count; ++i, from += stride, out += C) memcpy(out, from, C);
}
// out[i] = `bytes` bytes from `from` + i * stride.
void copy_strided(const uint8_t *from, int64_t stride, int64_t bytes, int64_t count, uint8_t *out) {
  if (bytes == 4) return copy_strided_by<4>(from, stride, count, out);
  if (bytes == 8) return copy_strided_by<8>(from, stride, count, out);
  if (bytes == 16) return copy_strided_by<16>(from, stride, count, out);
  for (int64_t i = 0; i < count; ++i, from += stride, out += bytes) copy_short(out, from, bytes);
}

// Columns [column, column + columns) of row y, which may lie outside the image, `step` bytes each:
// copy(first position's bytes, number of positions, out) brings those inside.
template <class Copy>
ADDERIZE_INLINE void padded_row(const ByteImage &image, int64_t y, int64_t column, int64_t columns, int64_t step, uint8_t *out,
                                Copy copy) {
  const Span seen = y < 0 || y >= image.h ? Span{columns, columns} : inside(column, 1, columns, image.w);
  memset(out, image.padding, size_t(seen.first * step));
  if (seen.count() > 0)
    copy(image.data + (y * image.w + column + seen.first) * image.stride, seen.count(), out + seen.first * step);
  memset(out + seen.last * step, image.padding, size_t((columns - seen.last) * step));
}

// out[column][channel]
void copy_row(const ByteImage &image, int64_t y, int64_t column, int64_t columns, uint8_t *out) {
  const int64_t c = image.channels;
  padded_row(image, y, column, columns, c, out, [&](const uint8_t *from, int64_t count, uint8_t *to) {
    if (c == image.stride)
      memcpy(to, from, size_t(count * c));
    else
      copy_strided(from, image.stride, c, count, to);
  });
}

// out[i] = `bytes` bytes from `from` + i * advance, then zeros up to a multiple of 8. Reads up to 7 bytes more.
void copy_in_blocks(const uint8_t *from, int64_t advance, int64_t bytes, int64_t count, uint8_t *out) {
  const int64_t whole = bytes / 8, rest = bytes % 8;
  uint64_t mask = 0;
  memset(&mask, 255, size_t(rest));
  for (int64_t i = 0; i < count; ++i, from += advance) {
    for (int64_t j = 0; j < whole; ++j, out += 8) memcpy(out, from + 8 * j, 8);
    if (!rest) continue;
    const uint64_t last = read<uint64_t>(from + 8 * whole) & mask;
    memcpy(out, &last, 8);
    out += 8;
  }
}

}}  // namespace adderize
