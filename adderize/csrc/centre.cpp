// Whether an image lies far from zero compared with its spread, and where.
#include <cmath>
#include <vector>

#include "adderize.h"

namespace {

constexpr int64_t sampled_values = 65536;
constexpr int64_t fewest_positions = 64;
constexpr double far_deviations = 4;

int centre(int64_t positions, int64_t channels, const float *input, float *mean) {
  int64_t count = sampled_values / channels;
  if (count < fewest_positions) count = fewest_positions;
  if (count > positions) count = positions;
  std::vector<float> sums(2 * size_t(channels));
  float *sum = sums.data(), *square = sum + channels;
  for (int64_t i = 0; i < count; ++i) {
    const float *position = input + (positions / count * i + i % (positions / count)) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float v = position[c] - input[c];  // around the first value: the squares must not cancel
      sum[c] += v;
      square[c] += v * v;
    }
  }
  double variance = 0, largest = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double shift = double(sum[c]) / double(count);
    variance += double(square[c]) / double(count) - shift * shift;
    mean[c] = float(input[c] + shift);
    if (!(std::fabs(mean[c]) <= largest)) largest = std::fabs(mean[c]);
    if (!std::isfinite(mean[c])) return 0;
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
