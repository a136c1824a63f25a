// Copies of a few rows of an image of bytes, padded with the zero point, in the order in which the micro-kernel reads them.
#pragma once

#include "u8_simd.h"

namespace adderize {
namespace {

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

// Columns [column, column + columns) of row y, which may lie outside the image: out[column][channel].
void copy_row(const ByteImage &image, int64_t y, int64_t column, int64_t columns, uint8_t *out) {
  const int64_t c = image.channels;
  if (y < 0 || y >= image.h) {
    memset(out, image.padding, size_t(columns * c));
    return;
  }
  const int64_t left = least(most(-column, 0), columns), right = most(least(image.w - column, columns), left);
  memset(out, image.padding, size_t(left * c));
  const uint8_t *from = image.data + (y * image.w + column + left) * image.stride;
  if (c == image.stride) {
    memcpy(out + left * c, from, size_t((right - left) * c));
  } else {
    copy_strided(from, image.stride, c, right - left, out + left * c);
  }
  memset(out + right * c, image.padding, size_t((columns - right) * c));
}

// out[i] = `bytes` bytes from `from` + i * advance, then zeros up to a multiple of 8. Reads up to 7 bytes more.
void spread(const uint8_t *from, int64_t advance, int64_t bytes, int64_t count, uint8_t *out) {
  const int64_t whole = bytes / 8, rest = bytes % 8;
  uint64_t mask = 0;
  memset(&mask, 255, size_t(rest));
  for (int64_t i = 0; i < count; ++i, from += advance) {
    for (int64_t j = 0; j < whole; ++j, out += 8) memcpy(out, from + 8 * j, 8);
    if (!rest) continue;
    uint64_t last;
    memcpy(&last, from + 8 * whole, 8);
    last &= mask;
    memcpy(out, &last, 8);
    out += 8;
  }
}

}  // namespace
}  // namespace adderize
