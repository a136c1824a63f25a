// Layout changes: N,C,H,W to N,H,W,C and back.
#pragma once

#include "runtime/bands.h"
#include "runtime/threads.h"
#include "simd/simd.h"

namespace adderize { namespace {

// output[b][j][i] = input[b][i][j], a band of rows of one matrix a task, in blocks of V x V.
void transpose_all(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads) {
  const Parts bands = parts_of(rows, max(V, round_up(min(rows, (int64_t(1) << 16) / columns), V)));
  parallel(batch * bands.count, threads, [&](int64_t task, int) {
    const Span band = bands[task % bands.count];
    const int64_t matrix = task / bands.count * rows * columns;
    for (int64_t j = 0; j < columns; j += V) {
      const int64_t across = min(V, columns - j);
      for (int64_t i = band.first; i < band.last; i += V) {
        const int64_t down = min(V, band.last - i);
        const float *in = input + matrix + i * columns + j;
        float *out = output + matrix + j * rows + i;
        vec v[V];
#pragma GCC unroll 16
        for (int k = 0; k < V; ++k) v[k] = k < down ? load(in + k * columns, across) : vec{};
        transpose(v);
#pragma GCC unroll 16
        for (int k = 0; k < V; ++k)
          if (k < across) store(out + k * rows, v[k], down);
      }
    }
  });
}

}}  // namespace adderize
