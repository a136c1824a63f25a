// Whether an image lies far from zero compared with its spread, and where.
#include <cmath>
#include <vector>

#include "adderize.h"

namespace {

constexpr int64_t sampled_values = 16384;
constexpr int64_t fewest_positions = 64;
constexpr double far_deviations = 4;
constexpr double golden = 0.6180339887498949;  // its multiples fall evenly into [0, 1), whatever the period of the rows

int centre(int64_t positions, int64_t channels, const float *input, float *mean) {
  int64_t count = sampled_values / channels;
  if (count < fewest_positions) count = fewest_positions;
  if (count > positions) count = positions;
  std::vector<double> sums(2 * size_t(channels));
  double *sum = sums.data(), *square = sum + channels;
  for (int64_t i = 0; i < count; ++i) {
    const double step = double(i) * golden;
    const int64_t at = count == positions ? i : int64_t((step - std::floor(step)) * double(positions));
    for (int64_t c = 0; c < channels; ++c) {
      const double v = input[at * channels + c];
      sum[c] += v;
      square[c] += v * v;
    }
  }
  double variance = 0, largest = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double average = sum[c] / double(count);
    if (!std::isfinite(average)) return 0;
    variance += square[c] / double(count) - average * average;
    if (std::fabs(average) > largest) largest = std::fabs(average);
    mean[c] = float(average);
  }
  return largest > far_deviations * std::sqrt(variance > 0 ? variance / double(channels) : 0);
}

}  // namespace

extern "C" int adderize_centre(int64_t positions, int64_t channels, const float *input, float *mean, int *far) {
  if (positions < 1 || channels < 1 || !input || !mean || !far) return ADDERIZE_BAD_ARGUMENT;
  try {
    *far = centre(positions, channels, input, mean);
    return ADDERIZE_OK;
  } catch (...) {
    return ADDERIZE_OUT_OF_MEMORY;
  }
}
