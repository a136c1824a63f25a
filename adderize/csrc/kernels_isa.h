// The kernels of one instruction set, put together. Each kernels_*.cpp includes this once, under its own flags.
#pragma once

#include "channel_totals.h"
#include "channelwise.h"
#include "depthwise.h"
#include "forward.h"
#include "input_gradient.h"
#include "sign_filter_gradient.h"
#include "transpose.h"

namespace adderize {
namespace {

// Groups that would leave most lanes of a vector empty.
bool small_groups(const adderize_shape &s, int64_t channels) { return s.groups > 1 && 2 * (channels / s.groups) <= V; }

int forward(const adderize_shape &s, const float *input, const Filters &filters, float *output, int form, int threads) {
  if (!small_groups(s, s.cout)) return forward_wide(s, input, filters, output, form, threads);
  return is_depthwise(s) ? depthwise_forward(s, input, filters, output, threads) : lane_forward(s, input, filters, output, threads);
}

int input_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out, int gradient,
                   int threads) {
  if (!small_groups(s, s.c)) return input_gradient_wide(s, grad, input, filters, out, gradient, threads);
  return is_depthwise(s) ? depthwise_gradient(s, grad, input, filters, out, gradient, threads)
                         : lane_gradient(s, grad, input, filters, out, gradient, threads);
}

}  // namespace

#define ADDERIZE_KERNELS(name) \
  extern const Kernels kernels_##name = {#name,         forward,        input_gradient,      sign_filter_gradient, \
                                         transpose_all, channel_totals, &byte_kernels_##name};

}  // namespace adderize
