/* adderize: native kernels of the adder convolution for CPUs, on float32 and on bytes.
 *
 * With X the input, F the filters, x_p the patch that output position p sees (zero padding takes part):
 *
 *   forward            Y[n,co,p]  = - sum_k | x_p[k] - F[co,k] |
 *   input gradient     dX         = sum over taps and co of g[n,co,p] * clip(F[co,k] - x_p[k], -1, 1), or * sgn(...)
 *   filter gradient    dF[co,k]   = sum over n and p of g[n,co,p] * sgn(x_p[k] - F[co,k])         (sign variant only)
 *
 * Layouts. Images (X, Y, g, dX) are dense N,H,W,C float32 ("channels last"). Filters are (cout, cin / groups, kh, kw) with any
 * strides, given in elements in that order. Pointers need no alignment. No output may overlap an input.
 *
 * Every function returns ADDERIZE_OK or one of the codes below, and never throws, aborts or prints. All are thread safe. `threads`
 * is the number of threads that share the work, the caller included; it never changes a bit of the result. NaN and infinity
 * propagate as in the formulas.
 */
#ifndef ADDERIZE_H
#define ADDERIZE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ADDERIZE_API __attribute__((visibility("default")))

/* Raised with every change of the declarations below or of their meaning: a library of another number is refused. */
#define ADDERIZE_ABI_VERSION 9
ADDERIZE_API int adderize_abi_version(void);

enum adderize_status {
  ADDERIZE_OK = 0,
  ADDERIZE_BAD_ARGUMENT = 1, /* a null pointer, an impossible shape, an unknown option */
  ADDERIZE_OUT_OF_MEMORY = 2,
  ADDERIZE_UNSUPPORTED_CPU = 3, /* the instruction set asked for is not one of this machine, or not compiled in */
  ADDERIZE_INTERNAL_ERROR = 4
};

/* Sizes in elements. oh and ow must agree with the other fields. n, c and cout may be 0. */
typedef struct adderize_shape {
  int64_t n, c, h, w;
  int64_t cout, kh, kw;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups;
  int64_t oh, ow;
} adderize_shape;

/* Instruction sets: "avx512", "avx2", "portable". */
ADDERIZE_API const char *adderize_active_cpu(void);
/* Comma-separated, best first: what this library holds and this machine runs. */
ADDERIZE_API const char *adderize_available_cpus(void);
/* Makes one of them active for the whole process; NULL or "auto" the best one. */
ADDERIZE_API int adderize_set_cpu(const char *name);
/* 1 if the kernels run on several threads (OpenMP), else 0. */
ADDERIZE_API int adderize_has_openmp(void);

/* |x - w| is summed as 2 max(x, w) - x - w ("fast") or as it stands ("exact", about 1.5 times slower). "auto" takes the fast form
 * and, block of outputs by block, the exact one where the fast one would cancel: its error stays below 1e-5 of max |Y|. "fast"
 * drops that check, but still takes the exact form where a result is not finite. */
enum adderize_form { ADDERIZE_FORM_AUTO = 0, ADDERIZE_FORM_FAST = 1, ADDERIZE_FORM_EXACT = 2 };

ADDERIZE_API int adderize_forward(const adderize_shape *shape, const float *input, const float *weight,
                                  const int64_t weight_strides[4], float *output, int form, int threads);

enum adderize_gradient { ADDERIZE_GRADIENT_FULL = 0, ADDERIZE_GRADIENT_SIGN = 1 };

ADDERIZE_API int adderize_input_gradient(const adderize_shape *shape, const float *grad, const float *input, const float *weight,
                                         const int64_t weight_strides[4], float *grad_input, int gradient, int threads);

/* grad_weight is dense in (cout, kh, kw, cin / groups) order. */
ADDERIZE_API int adderize_sign_filter_gradient(const adderize_shape *shape, const float *grad, const float *input,
                                               const float *weight, const int64_t weight_strides[4], float *grad_weight,
                                               int threads);

/* Of a depthwise layer, groups = c = cout: products[c][y][x] = sum over n and p of g[n,c,p] * x_p[c,y,x], a convolution's weight
 * gradient. */
ADDERIZE_API int adderize_depthwise_products(const adderize_shape *shape, const float *grad, const float *input, float *products,
                                             int threads);

/* The full-precision filter gradient is a convolution's weight gradient less F times the sum of g, which loses digits where the
 * inputs lie far from zero compared with their spread. Estimates each channel's mean from a fixed sample of an N,H,W,C image with
 * `positions` = n * h * w >= 1; *far becomes 1 if the largest one is finite and above 4 standard deviations, else 0. */
ADDERIZE_API int adderize_centre(int64_t positions, int64_t channels, const float *input, float *mean, int *far);

/* totals[channel] = the sum over all positions of an N,H,W,C image, in double; `positions` = n * h * w >= 1. */
ADDERIZE_API int adderize_channel_totals(int64_t positions, int64_t channels, const float *input, double *totals, int threads);

/* For `batch` matrices: output[b][j][i] = input[b][i][j], with i < rows and j < columns. Turns N,C,H,W into N,H,W,C and back. */
ADDERIZE_API int adderize_transpose(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads);

/* The forward pass on bytes: the epilogue of acc = sum_k | x_p[k] - F[co,k] |, with x, F and the padding (zero_point) uint8:
 *
 *   v = float(acc) * scale[co] + shift[co], then + residual_scale * float(residual) where there is one, then within [low, high]
 *
 * each operation rounded to float32, none fused. A byte is v rounded half to even; its low and high are integers in 0..255.
 * scale and shift are finite. The residual and the output are dense N,H,W,C. */
typedef struct adderize_u8_epilogue {
  const float *scale, *shift; /* (cout,) */
  const uint8_t *residual;    /* of the output's shape, or null */
  void *output;               /* float32 if float_output, else uint8 */
  float residual_scale, low, high;
  int float_output;
} adderize_u8_epilogue;

/* `packed` holds the filters in an order that no instruction set changes; R(n, m) is n rounded up to a multiple of m, cg = c /
 * groups:
 *
 *   narrow      [R(groups, G) / G][kh][kw][cg][64 lanes]
 *   otherwise   [groups][R(og, 8) / 8][K / 8][8 filters][8 taps]
 *
 * Narrow are several groups of cg <= 8 with og = cout / groups <= 16 filters each, if cg og < 64; lanes are the filters of
 * G = 64 / og groups, rounded down. Elsewhere a filter's K taps are [kh][R(kw * cg, 8)] if 4 R(kw * cg, 8) <= 3 kw R(cg, 8), else
 * [kh][kw][R(cg, 8)]. Zeros fill up.
 * c >= 1, and cg * kh * kw * 255 fits an int32. */
ADDERIZE_API int adderize_forward_u8(const adderize_shape *shape, const uint8_t *input, const uint8_t *packed, int zero_point,
                                     const adderize_u8_epilogue *epilogue, int threads);

/* The same pass with integers alone behind the distances, in 32-bit two's complement, where sums wrap around:
 *
 *   v = (acc * factor[co] + residual * residual_factor + bias[co]) >> fraction, rounded down, then within [low, high]
 *
 * `low` and `high` lie in 0..255 where the output is bytes. */
typedef struct adderize_u8_shift_epilogue {
  const int32_t *factor, *bias; /* (cout,) */
  const void *residual;         /* of the output's shape, or null: int32 if int32_residual, else uint8 */
  void *output;                 /* int32 if int32_output, else uint8 */
  int32_t residual_factor, low, high;
  int fraction; /* 0..31 */
  int int32_residual, int32_output;
} adderize_u8_shift_epilogue;

ADDERIZE_API int adderize_forward_u8_shifted(const adderize_shape *shape, const uint8_t *input, const uint8_t *packed,
                                             int zero_point, const adderize_u8_shift_epilogue *epilogue, int threads);

/* output[i] = input[i] * steps rounded half to even, plus zero_point, each in float32, then within [0, levels]; 0 for a NaN. steps
 * is positive, zero_point a finite integer, levels in 1..255. */
ADDERIZE_API int adderize_to_bytes(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output,
                                   int threads);

/* Maxima over windows of kh x kw taps; those outside the image count as 0. cout = c and groups = 1; oh and ow may be any numbers of
 * windows of which the last starts before the image's end. */
ADDERIZE_API int adderize_max_pool_u8(const adderize_shape *shape, const uint8_t *input, uint8_t *output, int threads);

/* The arithmetic of one pair of input x and filter F in each kernel, and in a convolution. */
enum adderize_loop {
  ADDERIZE_LOOP_MULTIPLY = 0, /* a convolution: x F */
  ADDERIZE_LOOP_MAXIMA = 1,   /* the fast form of the forward pass: max(x, F) */
  ADDERIZE_LOOP_CLIP = 2,     /* the input gradient: g clip(F - x, -1, 1) */
  ADDERIZE_LOOP_SIGN = 3,     /* the sign filter gradient: g sgn(x - F), as for numbers of ordinary magnitude */
  ADDERIZE_LOOP_BYTES = 4     /* the forward pass on bytes: |x - F|; x and F are integers in 0..255 */
};

/* For measuring what a processor could do at most: sums that term for operands = {x, F, g} in registers, `rounds` (1..2^20) times
 * in every accumulator of every thread. *pairs is the number of terms, *total their sum. */
ADDERIZE_API int adderize_register_loop(int form, int64_t rounds, const float operands[3], int threads, int64_t *pairs,
                                        double *total);

#ifdef __cplusplus
}
#endif
#endif
