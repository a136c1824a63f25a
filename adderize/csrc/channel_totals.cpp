// Sums of an image's channels over all of its positions, in double: where they nearly cancel, the rest must be right.
#include <cstddef>
#include <new>
#include <vector>

#include "kernels.h"

namespace adderize {
namespace {

struct Totals {
  const float *input;
  int64_t positions, channels, chunk;
  double *partial;  // [chunk][channel]
};

void total_task(const void *context, int64_t task, int) {
  const Totals &t = *static_cast<const Totals *>(context);
  const int64_t channels = t.channels, begin = task * t.chunk;
  const int64_t end = begin + t.chunk < t.positions ? begin + t.chunk : t.positions;
  double *sum = t.partial + task * channels;
  const float *x = t.input + begin * channels;
  int64_t i = begin;
  for (; i + 4 <= end; i += 4, x += 4 * channels)
    for (int64_t c = 0; c < channels; ++c)
      sum[c] += (double(x[c]) + double(x[channels + c])) + (double(x[2 * channels + c]) + double(x[3 * channels + c]));
  for (; i < end; ++i, x += channels)
    for (int64_t c = 0; c < channels; ++c) sum[c] += double(x[c]);
}

// The chunks follow from the shape alone: the result must not depend on the number of threads.
void channel_totals(int64_t positions, int64_t channels, const float *input, double *totals, int threads) {
  constexpr int64_t most_chunks = 64, fewest_values = 16384;
  const int64_t worth = positions * channels / fewest_values + 1;
  const int64_t wanted = worth < most_chunks ? worth : most_chunks;
  const int64_t chunk = (positions + wanted - 1) / wanted, chunks = (positions + chunk - 1) / chunk;
  std::vector<double> partial(std::size_t(chunks * channels));
  const Totals plan = {input, positions, channels, chunk, partial.data()};
  parallel(chunks, threads, &plan, total_task);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[std::size_t(i * channels + c)];
    totals[c] = sum;
  }
}

}  // namespace
}  // namespace adderize

extern "C" int adderize_channel_totals(int64_t positions, int64_t channels, const float *input, double *totals, int threads) {
  if (positions < 1 || channels < 1 || !input || !totals || threads < 1) return ADDERIZE_BAD_ARGUMENT;
  try {
    adderize::channel_totals(positions, channels, input, totals, threads);
    return ADDERIZE_OK;
  } catch (const std::bad_alloc &) {
    return ADDERIZE_OUT_OF_MEMORY;
  } catch (...) {
    return ADDERIZE_INTERNAL_ERROR;
  }
}
