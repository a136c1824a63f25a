// The float kernels of one instruction set: compiled once for each, under its own flags and names.
#include "f32/channel_totals.h"
#include "f32/depthwise.h"
#include "f32/forward.h"
#include "f32/input_gradient.h"
#include "f32/narrow_groups.h"
#include "f32/sign_filter_gradient.h"
#include "f32/transpose.h"
#include "register_loops.h"

namespace adderize {
namespace {

// Groups that would leave most lanes of a vector empty.
bool small_groups(const adderize_shape &s, int64_t channels) { return s.groups > 1 && 2 * (channels / s.groups) <= V; }

void run_lanes(const LaneLayer &layer, int threads) { (is_depthwise(layer.s) ? run_depthwise : run_narrow)(layer, threads); }

void forward(const adderize_shape &s, const float *input, const Filters &filters, float *output, int form, int threads) {
  if (small_groups(s, s.cout)) return run_lanes(forward_lanes(s, input, filters, output), threads);
  forward_wide(s, input, filters, output, form, threads);
}

void input_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out,
                    int gradient, int threads) {
  if (small_groups(s, s.c)) return run_lanes(gradient_lanes(s, grad, input, filters, out, gradient), threads);
  input_gradient_wide(s, grad, input, filters, out, gradient, threads);
}

}  // namespace

extern const Kernels ADDERIZE_KERNELS = {ADDERIZE_NAME, forward,        input_gradient, sign_filter_gradient,  depthwise_products,
                                         transpose_all, channel_totals, register_loop,  &ADDERIZE_BYTE_KERNELS};

}  // namespace adderize
