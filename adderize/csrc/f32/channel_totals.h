// Sums of an image's channels over all of its positions, in double: where they nearly cancel, the rest must be right.
#pragma once

#include "runtime/bands.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace adderize { namespace {

void add_totals(const float *x, int64_t positions, int64_t channels, double *__restrict sum) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0;
  int64_t i = 0;
  for (; i + 4 <= positions; i += 4, x += 4 * channels)
    for (int64_t c = 0; c < channels; ++c)
      sum[c] += (double(x[c]) + double(x[channels + c])) + (double(x[2 * channels + c]) + double(x[3 * channels + c]));
  for (; i < positions; ++i, x += channels)
    for (int64_t c = 0; c < channels; ++c) sum[c] += double(x[c]);
}

// The chunks follow from the shape alone: the result must not depend on the number of threads.
void channel_totals(int64_t positions, int64_t channels, const float *input, double *totals, int threads) {
  constexpr int64_t most_chunks = 64, fewest_values = 16384;
  const Parts chunks = at_most(positions, min(positions * channels / fewest_values + 1, most_chunks));
  double *partial = nullptr;  // [chunk][channel]
  allocate([&](Arena &arena) { arena.take(partial, chunks.count * channels); });
  parallel(chunks.count, threads, [&](int64_t task, int) {
    const Span chunk = chunks[task];
    add_totals(input + chunk.first * channels, chunk.count(), channels, partial + task * channels);
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < chunks.count; ++i) sum += partial[i * channels + c];
    totals[c] = sum;
  }
}

}}  // namespace adderize
