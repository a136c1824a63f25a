// The sign variant of the filter gradient: dF[co, tap, ci] = sum over n and p of g[n, p, co] * sgn(x - F[co, tap, ci]).
#pragma once

#include "kernels.h"
#include "runtime/bands.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

constexpr int sign_block = 8;  // filter elements in registers

// `count` elements of a vector of filters, and their sums: over the outputs of a few rows, of many, and of all.
struct SignBlock {
  int64_t lanes;
  int count;
  vec filter[sign_block] = {}, part[sign_block] = {}, rows[sign_block] = {}, acc[sign_block] = {};
};

// `columns` outputs of a row, and what the first element sees of the input; `pixel` floats from one output to the next.
struct SignRow {
  const float *g, *x;
  int64_t g_pixel, x_pixel, columns;
};

// Adds to `part`, in short sums that keep their digits. Depthwise: the lanes are groups.
template <bool Depthwise>
ADDERIZE_INLINE void sign_row(SignRow row, SignBlock &block) {
  for (int64_t o = 0; o < row.columns;) {
    vec sum[sign_block] = {};
    for (const int64_t end = min(o + 128, row.columns); o < end; ++o, row.g += row.g_pixel, row.x += row.x_pixel) {
      const vec weight = load(row.g, block.lanes);
      if (Depthwise) {
        sum[0] = fma(weight, sign(load(row.x, block.lanes) - block.filter[0]), sum[0]);
      } else if (block.count == sign_block) {
#pragma GCC unroll 8
        for (int i = 0; i < sign_block; ++i) sum[i] = fma(weight, sign(broadcast(row.x + i) - block.filter[i]), sum[i]);
      } else {
        for (int i = 0; i < block.count; ++i) sum[i] = fma(weight, sign(broadcast(row.x + i) - block.filter[i]), sum[i]);
      }
    }
    for (int i = 0; i < (Depthwise ? 1 : sign_block); ++i) block.part[i] += sum[i];
  }
}

void move_sums(vec *from, vec *to, int count) {
  for (int i = 0; i < count; ++i) {
    to[i] += from[i];
    from[i] = vec{};
  }
}

// One vector of output channels from `co` on, one tap, a block of input channels from `ci` on, the first of which is `channel`.
template <bool Depthwise>
void sum_sign_block(const adderize_shape &s, const float *grad, const float *input, int64_t tap, int64_t channel,
                    SignBlock &block) {
  alignas(64) static const float zeros[V > sign_block ? V : sign_block] = {};
  const int64_t tap_y = tap / s.kw * s.dilation_h - s.padding_h, tap_x = tap % s.kw * s.dilation_w - s.padding_w;
  const Span seen = inside(tap_x, s.stride_w, s.ow, s.w);  // the other columns of outputs see zeros
  for (int64_t row = 0; row < s.n * s.oh; ++row, grad += s.ow * s.cout) {
    const int64_t n = row / s.oh, y = row % s.oh * s.stride_h + tap_y;
    if (row % 32 == 0) move_sums(block.part, block.rows, block.count);
    if (row % 1024 == 0) move_sums(block.rows, block.acc, block.count);
    const auto add_zeros = [&](int64_t first, int64_t last) {
      sign_row<Depthwise>({grad + first * s.cout, zeros, s.cout, 0, last - first}, block);
    };
    if (y < 0 || y >= s.h) {
      add_zeros(0, s.ow);
      continue;
    }
    const float *x = input + ((n * s.h + y) * s.w + tap_x + seen.first * s.stride_w) * s.c + channel;
    add_zeros(0, seen.first);
    sign_row<Depthwise>({grad + seen.first * s.cout, x, s.cout, s.stride_w * s.c, seen.count()}, block);
    add_zeros(seen.last, s.ow);
  }
  move_sums(block.part, block.rows, block.count);
  move_sums(block.rows, block.acc, block.count);
}

template <bool Depthwise>
void sign_filters(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out, int threads) {
  const int64_t cg = s.c / s.groups, channels = Depthwise ? s.c : s.cout / s.groups, taps = s.kh * s.kw;
  const Parts vectors = parts_of(channels, V), blocks = parts_of(cg, sign_block);
  parallel(blocks.count * taps * vectors.count * (Depthwise ? 1 : s.groups), threads, [&](int64_t number, int) {
    TaskIndex index = {number};
    const Span inputs = blocks[index.take(blocks.count)];
    const int64_t tap = index.take(taps);
    const Span lanes = vectors[index.take(vectors.count)];
    const int64_t co = index.rest * channels + lanes.first, ci = inputs.first, *stride = filters.stride;
    SignBlock block = {};
    block.lanes = lanes.count();
    block.count = int(inputs.count());
    const float *from = filters.tap(tap / s.kw, tap % s.kw) + co * stride[0] + ci * stride[1];
    for (int i = 0; i < block.count; ++i)
      for (int64_t l = 0; l < block.lanes; ++l) block.filter[i][l] = from[l * stride[0] + i * stride[1]];
    sum_sign_block<Depthwise>(s, grad + co, input, tap, Depthwise ? co : index.rest * cg + ci, block);
    for (int i = 0; i < block.count; ++i)
      for (int64_t l = 0; l < block.lanes; ++l) out[((co + l) * taps + tap) * cg + ci + i] = block.acc[i][l];
  });
}

void sign_filter_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out,
                          int threads) {
  const bool depthwise = s.c == s.groups && s.cout == s.groups;
  (depthwise ? sign_filters<true> : sign_filters<false>)(s, grad, input, filters, out, threads);
}

}}  // namespace adderize
