// The sign variant of the filter gradient: dF[co, tap, ci] = sum over n and p of g[n, p, co] * sgn(x - F[co, tap, ci]).
#pragma once

#include "kernels.h"
#include "simd.h"

namespace adderize {
namespace {

constexpr int sign_block = 8;  // filter elements in registers

struct SignPlan {
  adderize_shape s;
  const float *grad, *input;
  Filters filters;
  float *out;
  int64_t cg, og, vectors, blocks;
  const float *zeros;
};

// Adds to acc[i] for one row of outputs, in short sums that keep their digits: `x` of output column o lies at row + o * pixel, i floats further for element i.
template <bool Depthwise>
void sign_row(const float *g, int64_t g_pixel, int64_t lanes, const float *x, int64_t pixel, int64_t columns, int count,
              const vec *filter, vec *acc) {
  for (int64_t o = 0; o < columns;) {
    vec sum[sign_block] = {};
    for (const int64_t end = least(o + 128, columns); o < end; ++o, g += g_pixel, x += pixel) {
      const vec weight = load(g, lanes);
      if (Depthwise) {
        sum[0] = fma(weight, sign(load(x, lanes) - filter[0]), sum[0]);
      } else if (count == sign_block) {
#pragma GCC unroll 8
        for (int i = 0; i < sign_block; ++i) sum[i] = fma(weight, sign(broadcast(x + i) - filter[i]), sum[i]);
      } else {
        for (int i = 0; i < count; ++i) sum[i] = fma(weight, sign(broadcast(x + i) - filter[i]), sum[i]);
      }
    }
    for (int i = 0; i < sign_block; ++i) acc[i] += sum[i];
  }
}

void move_sums(vec *from, vec *to) {
  for (int i = 0; i < sign_block; ++i) {
    to[i] += from[i];
    from[i] = vec{};
  }
}

// One vector of output channels, one tap, a block of input channels. Depthwise: the lanes are groups.
template <bool Depthwise>
void sign_task(const void *context, int64_t task, int) {
  const SignPlan &p = *static_cast<const SignPlan *>(context);
  const adderize_shape &s = p.s;
  const int64_t block = task % p.blocks, tap = task / p.blocks % (s.kh * s.kw), rest = task / (p.blocks * s.kh * s.kw);
  const int64_t group = Depthwise ? 0 : rest / p.vectors, vector = rest % p.vectors;
  const int64_t ty = tap / s.kw, tx = tap % s.kw, ci = block * sign_block;
  const int count = Depthwise ? 1 : int(least(sign_block, p.cg - ci));
  const int64_t channels = Depthwise ? s.c : p.og, lanes = least(V, channels - vector * V), co = group * p.og + vector * V;

  vec filter[sign_block] = {}, acc[sign_block] = {}, rows[sign_block] = {}, part[sign_block] = {};
  const float *from = p.filters.data + co * p.filters.stride[0] + ci * p.filters.stride[1] + ty * p.filters.stride[2] + tx * p.filters.stride[3];
  for (int i = 0; i < count; ++i)
    for (int64_t l = 0; l < lanes; ++l) filter[i][l] = from[l * p.filters.stride[0] + i * p.filters.stride[1]];

  const int64_t shift = tx * s.dilation_w - s.padding_w;  // input column of output column 0
  const int64_t left = least(shift < 0 ? ceil_div(-shift, s.stride_w) : 0, s.ow);
  const int64_t right = most(least(shift < s.w ? ceil_div(s.w - shift, s.stride_w) : 0, s.ow), left);
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t oy = 0; oy < s.oh; ++oy) {
      const int64_t y = oy * s.stride_h + ty * s.dilation_h - s.padding_h, row = n * s.oh + oy;
      if (row % 32 == 0) move_sums(part, rows);
      if (row % 1024 == 0) move_sums(rows, acc);
      const float *g = p.grad + row * s.ow * s.cout + co;
      if (y < 0 || y >= s.h) {
        sign_row<Depthwise>(g, s.cout, lanes, p.zeros, 0, s.ow, count, filter, part);
        continue;
      }
      const float *x = p.input + ((n * s.h + y) * s.w + shift + left * s.stride_w) * s.c + (Depthwise ? co : group * p.cg + ci);
      sign_row<Depthwise>(g, s.cout, lanes, p.zeros, 0, left, count, filter, part);
      sign_row<Depthwise>(g + left * s.cout, s.cout, lanes, x, s.stride_w * s.c, right - left, count, filter, part);
      sign_row<Depthwise>(g + right * s.cout, s.cout, lanes, p.zeros, 0, s.ow - right, count, filter, part);
    }
  }
  move_sums(part, rows);
  move_sums(rows, acc);
  for (int i = 0; i < count; ++i)
    for (int64_t l = 0; l < lanes; ++l) p.out[((co + l) * s.kh * s.kw + tap) * p.cg + ci + i] = acc[i][l];
}

int sign_filter_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out,
                         int threads) {
  alignas(64) static const float zeros[V > sign_block ? V : sign_block] = {};
  SignPlan p = {s, grad, input, filters, out, s.c / s.groups, s.cout / s.groups, 0, 1, zeros};
  if (p.cg == 1 && p.og == 1) {
    p.vectors = ceil_div(s.c, V);
    parallel(s.kh * s.kw * p.vectors, threads, &p, sign_task<true>);
  } else {
    p.vectors = ceil_div(p.og, V);
    p.blocks = ceil_div(p.cg, sign_block);
    parallel(p.blocks * s.kh * s.kw * s.groups * p.vectors, threads, &p, sign_task<false>);
  }
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
