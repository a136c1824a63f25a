// What every instruction set implements. This header and those below are compiled with the flags of each: nothing in them may
// instantiate a template of the standard library, or the linker might keep the AVX-512 copy of it for a machine without AVX-512.
// Where memory is short they throw std::bad_alloc.
#pragma once

#include "adderize.h"

namespace adderize {

struct Filters {
  const float *data;
  int64_t stride[4];  // cout, cin / groups, kh, kw

  const float *tap(int64_t y, int64_t x) const { return data + y * stride[2] + x * stride[3]; }
};

// One of them is there.
struct ByteEpilogue {
  const adderize_u8_epilogue *scaled;
  const adderize_u8_shift_epilogue *shifted;
};

// Compiled apart from the rest, without contraction.
struct ByteKernels {
  void (*forward)(const adderize_shape &, const uint8_t *input, const uint8_t *packed, int zero_point, const ByteEpilogue &,
                  int threads);
  void (*to_bytes)(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output, int threads);
  void (*max_pool)(const adderize_shape &, const uint8_t *input, uint8_t *output, int threads);
};

struct Kernels {
  const char *name;
  void (*forward)(const adderize_shape &, const float *input, const Filters &, float *output, int form, int threads);
  void (*input_gradient)(const adderize_shape &, const float *grad, const float *input, const Filters &, float *grad_input,
                         int gradient, int threads);
  void (*sign_filter_gradient)(const adderize_shape &, const float *grad, const float *input, const Filters &, float *grad_weight,
                               int threads);
  void (*depthwise_products)(const adderize_shape &, const float *grad, const float *input, float *products, int threads);
  void (*transpose)(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads);
  void (*channel_totals)(int64_t positions, int64_t channels, const float *input, double *totals, int threads);
  void (*register_loop)(int form, int64_t rounds, const float operands[3], int threads, int64_t *pairs, double *total);
  const ByteKernels *bytes;
};

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512;
extern const ByteKernels byte_kernels_portable, byte_kernels_avx2, byte_kernels_avx512;

// Those of the instruction set in use, see dispatch.cpp.
const Kernels &active();

}  // namespace adderize
