// What every instruction set implements, and what the kernels may use of the rest of the library.
// This header is compiled with the flags of each instruction set: nothing in it may instantiate a template of the
// standard library, or the linker might keep the AVX-512 copy of it for a machine without AVX-512.
#pragma once

#include "adderize.h"

namespace adderize {

struct Filters {
  const float *data;
  int64_t stride[4];  // cout, cin / groups, kh, kw
};

// A 64-byte aligned block for the calling thread, valid until its next call; null when memory is short.
float *scratch(int64_t floats);

// Calls run(context, task, worker) once for every task, in any order, worker < threads.
using Task = void (*)(const void *context, int64_t task, int worker);
void parallel(int64_t tasks, int threads, const void *context, Task run);

// Compiled apart from the rest, without contraction.
struct ByteKernels {
  int (*forward)(const adderize_shape &, const uint8_t *input, const uint8_t *packed, int zero_point, const adderize_u8_epilogue &,
                 int threads);
  int (*to_bytes)(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output, int threads);
  int (*max_pool)(const adderize_shape &, const uint8_t *input, uint8_t *output, int threads);
};

extern const ByteKernels byte_kernels_portable;
extern const ByteKernels byte_kernels_avx2;
extern const ByteKernels byte_kernels_avx512;

struct Kernels {
  const char *name;
  int (*forward)(const adderize_shape &, const float *input, const Filters &, float *output, int form, int threads);
  int (*input_gradient)(const adderize_shape &, const float *grad, const float *input, const Filters &, float *grad_input,
                        int gradient, int threads);
  int (*sign_filter_gradient)(const adderize_shape &, const float *grad, const float *input, const Filters &,
                              float *grad_weight, int threads);
  int (*transpose)(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads);
  int (*channel_totals)(int64_t positions, int64_t channels, const float *input, double *totals, int threads);
  const ByteKernels *bytes;
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace adderize
