// Sums of an image's channels over all of its positions, in double: where they nearly cancel, the rest must be right.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace adderize {
namespace {

struct TotalPlan {
  const float *input;
  int64_t positions, channels, chunk;
  double *partial;  // [chunk][channel]
};

void total_task(const void *context, int64_t task, int) {
  const TotalPlan &t = *static_cast<const TotalPlan *>(context);
  const int64_t channels = t.channels, begin = task * t.chunk, end = least(begin + t.chunk, t.positions);
  double *__restrict sum = t.partial + task * channels;
  const float *x = t.input + begin * channels;
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0;
  int64_t i = begin;
  for (; i + 4 <= end; i += 4, x += 4 * channels)
    for (int64_t c = 0; c < channels; ++c)
      sum[c] += (double(x[c]) + double(x[channels + c])) + (double(x[2 * channels + c]) + double(x[3 * channels + c]));
  for (; i < end; ++i, x += channels)
    for (int64_t c = 0; c < channels; ++c) sum[c] += double(x[c]);
}

// The chunks follow from the shape alone: the result must not depend on the number of threads.
int channel_totals(int64_t positions, int64_t channels, const float *input, double *out, int threads) {
  constexpr int64_t most_chunks = 64, fewest_values = 16384;
  const int64_t wanted = least(positions * channels / fewest_values + 1, most_chunks);
  const int64_t chunk = ceil_div(positions, wanted), chunks = ceil_div(positions, chunk);
  float *memory = scratch(2 * chunks * channels);
  if (!memory) return ADDERIZE_OUT_OF_MEMORY;
  const TotalPlan plan = {input, positions, channels, chunk, reinterpret_cast<double *>(memory)};
  parallel(chunks, threads, &plan, total_task);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += plan.partial[i * channels + c];
    out[c] = sum;
  }
  return ADDERIZE_OK;
}

}  // namespace
}  // namespace adderize
