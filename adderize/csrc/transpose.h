// Layout changes: N,C,H,W to N,H,W,C and back.
#pragma once

#include "kernels.h"
#include "pack.h"

namespace adderize {
namespace {

struct TransposePlan {
  int64_t rows, columns, bands, height;
  const float *input;
  float *output;
};

// A band of rows of one matrix, in blocks of V x V.
void transpose_task(const void *context, int64_t task, int) {
  const TransposePlan &p = *static_cast<const TransposePlan *>(context);
  const int64_t b = task / p.bands, first = task % p.bands * p.height, last = least(first + p.height, p.rows);
  const float *in = p.input + b * p.rows * p.columns;
  float *out = p.output + b * p.rows * p.columns;
  for (int64_t j = 0; j < p.columns; j += V) {
    const int64_t across = least(V, p.columns - j);
    for (int64_t i = first; i < last; i += V) {
      const int64_t down = least(V, last - i);
      vec v[V];
#pragma GCC unroll 16
      for (int k = 0; k < V; ++k) v[k] = k < down ? load(in + (i + k) * p.columns + j, across) : vec{};
      transpose(v);
#pragma GCC unroll 16
      for (int k = 0; k < V; ++k)
        if (k < across) store(out + (j + k) * p.rows + i, v[k], down);
    }
  }
}

int transpose_all(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads) {
  TransposePlan p = {rows, columns, 1, rows, input, output};
  p.height = most(V, round_up(least(rows, (int64_t(1) << 16) / columns), V));
  p.bands = ceil_div(rows, p.height);
  parallel(batch * p.bands, threads, &p, transpose_task);
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
