// The C API: checks arguments, picks the instruction set, turns exceptions into codes.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <new>

#include "kernels.h"

namespace adderize { namespace {

// Every product of sizes below stays far from overflow when each tensor has fewer elements than this.
constexpr int64_t most_elements = int64_t(1) << 48;

bool small(int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t product = 1;
  for (int64_t size : {a, b, c, d})
    if (__builtin_mul_overflow(product, size > 0 ? size : 1, &product) || product > most_elements) return false;
  return true;
}

bool in_range(int64_t in, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t out) {
  constexpr int64_t most = int64_t(1) << 30;
  if (in < 1 || k < 1 || stride < 1 || padding < 0 || dilation < 1 || out < 1) return false;
  return in <= most && k <= most && stride <= most && padding <= most && dilation <= most && out <= most;
}

bool extent_matches(int64_t in, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t out) {
  if (!in_range(in, k, stride, padding, dilation, out)) return false;
  const int64_t room = in + 2 * padding - dilation * (k - 1) - 1;
  return room >= 0 && room / stride + 1 == out;
}

bool valid(const adderize_shape *s) {
  if (!s || s->n < 0 || s->c < 0 || s->cout < 0 || s->groups < 1) return false;
  if (s->c % s->groups || s->cout % s->groups) return false;
  return extent_matches(s->h, s->kh, s->stride_h, s->padding_h, s->dilation_h, s->oh) &&
         extent_matches(s->w, s->kw, s->stride_w, s->padding_w, s->dilation_w, s->ow) &&
         small(s->n, s->c, s->h + 2 * s->padding_h, s->w + 2 * s->padding_w) && small(s->n, s->cout, s->oh, s->ow) &&
         small(s->cout, s->c / s->groups, s->kh, s->kw);
}

bool valid_pool(const adderize_shape *s) {
  if (!s || s->n < 0 || s->c < 0 || s->cout != s->c || s->groups != 1) return false;
  if (!in_range(s->h, s->kh, s->stride_h, s->padding_h, s->dilation_h, s->oh)) return false;
  if (!in_range(s->w, s->kw, s->stride_w, s->padding_w, s->dilation_w, s->ow)) return false;
  return (s->oh - 1) * s->stride_h - s->padding_h < s->h && (s->ow - 1) * s->stride_w - s->padding_w < s->w &&
         small(s->n, s->c, s->h, s->w) && small(s->n, s->c, s->oh, s->ow);
}

bool valid_bytes(const adderize_shape *s, int zero_point, int threads) {
  return valid(s) && s->c >= 1 && threads >= 1 && zero_point >= 0 && zero_point <= 255 &&
         s->c / s->groups * s->kh * s->kw <= INT32_MAX / 255;
}

bool is_byte(float v) { return v >= 0 && v <= 255 && std::nearbyint(v) == v; }

bool valid(const adderize_u8_epilogue *e) {
  if (!e || !(e->low <= e->high)) return false;
  return e->float_output || (is_byte(e->low) && is_byte(e->high));
}

bool valid(const adderize_u8_shift_epilogue *e) {
  return e && e->low <= e->high && e->fraction >= 0 && e->fraction <= 31 && (e->int32_output || (e->low >= 0 && e->high <= 255));
}

// Of a register loop: as many distances of bytes fit an int32.
constexpr int64_t most_rounds = 1 << 20;

Filters filters(const float *weight, const int64_t strides[4]) {
  return {weight, {strides[0], strides[1], strides[2], strides[3]}};
}

int64_t inputs(const adderize_shape &s) { return s.n * s.c * s.h * s.w; }
int64_t outputs(const adderize_shape &s) { return s.n * s.cout * s.oh * s.ow; }
int64_t weights(const adderize_shape &s) { return s.cout * (s.c / s.groups) * s.kh * s.kw; }

int zeros(float *output, int64_t count) {
  std::memset(output, 0, size_t(count) * sizeof(float));
  return ADDERIZE_OK;
}

template <class Call>
int guarded(Call call) noexcept {
  try {
    call();
    return ADDERIZE_OK;
  } catch (const std::bad_alloc &) {
    return ADDERIZE_OUT_OF_MEMORY;
  } catch (...) {
    return ADDERIZE_INTERNAL_ERROR;
  }
}

}}  // namespace adderize

using namespace adderize;

extern "C" {

int adderize_abi_version(void) { return ADDERIZE_ABI_VERSION; }

int adderize_forward(const adderize_shape *shape, const float *input, const float *weight, const int64_t weight_strides[4],
                     float *output, int form, int threads) {
  if (!valid(shape) || threads < 1 || !weight_strides || form < ADDERIZE_FORM_AUTO || form > ADDERIZE_FORM_EXACT)
    return ADDERIZE_BAD_ARGUMENT;
  if (outputs(*shape) == 0) return ADDERIZE_OK;
  if (!output) return ADDERIZE_BAD_ARGUMENT;
  if (shape->c == 0) return zeros(output, outputs(*shape));
  if (!input || !weight) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().forward(*shape, input, filters(weight, weight_strides), output, form, threads); });
}

int adderize_input_gradient(const adderize_shape *shape, const float *grad, const float *input, const float *weight,
                            const int64_t weight_strides[4], float *grad_input, int gradient, int threads) {
  if (!valid(shape) || threads < 1 || !weight_strides || gradient < ADDERIZE_GRADIENT_FULL || gradient > ADDERIZE_GRADIENT_SIGN)
    return ADDERIZE_BAD_ARGUMENT;
  if (inputs(*shape) == 0) return ADDERIZE_OK;
  if (!grad_input) return ADDERIZE_BAD_ARGUMENT;
  if (shape->cout == 0) return zeros(grad_input, inputs(*shape));
  if (!grad || !input || !weight) return ADDERIZE_BAD_ARGUMENT;
  return guarded(
      [&] { active().input_gradient(*shape, grad, input, filters(weight, weight_strides), grad_input, gradient, threads); });
}

int adderize_sign_filter_gradient(const adderize_shape *shape, const float *grad, const float *input, const float *weight,
                                  const int64_t weight_strides[4], float *grad_weight, int threads) {
  if (!valid(shape) || threads < 1 || !weight_strides) return ADDERIZE_BAD_ARGUMENT;
  if (weights(*shape) == 0) return ADDERIZE_OK;
  if (!grad_weight) return ADDERIZE_BAD_ARGUMENT;
  if (shape->n == 0) return zeros(grad_weight, weights(*shape));
  if (!grad || !input || !weight) return ADDERIZE_BAD_ARGUMENT;
  return guarded(
      [&] { active().sign_filter_gradient(*shape, grad, input, filters(weight, weight_strides), grad_weight, threads); });
}

int adderize_depthwise_products(const adderize_shape *shape, const float *grad, const float *input, float *products, int threads) {
  if (!valid(shape) || shape->c != shape->groups || shape->cout != shape->groups || threads < 1) return ADDERIZE_BAD_ARGUMENT;
  if (!products) return ADDERIZE_BAD_ARGUMENT;
  if (shape->n == 0) return zeros(products, weights(*shape));
  if (!grad || !input) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().depthwise_products(*shape, grad, input, products, threads); });
}

int adderize_forward_u8(const adderize_shape *shape, const uint8_t *input, const uint8_t *packed, int zero_point,
                        const adderize_u8_epilogue *epilogue, int threads) {
  if (!valid_bytes(shape, zero_point, threads) || !valid(epilogue)) return ADDERIZE_BAD_ARGUMENT;
  if (outputs(*shape) == 0) return ADDERIZE_OK;
  if (!input || !packed || !epilogue->output || !epilogue->scale || !epilogue->shift) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().bytes->forward(*shape, input, packed, zero_point, {epilogue, nullptr}, threads); });
}

int adderize_forward_u8_shifted(const adderize_shape *shape, const uint8_t *input, const uint8_t *packed, int zero_point,
                                const adderize_u8_shift_epilogue *epilogue, int threads) {
  if (!valid_bytes(shape, zero_point, threads) || !valid(epilogue)) return ADDERIZE_BAD_ARGUMENT;
  if (outputs(*shape) == 0) return ADDERIZE_OK;
  if (!input || !packed || !epilogue->output || !epilogue->factor || !epilogue->bias) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().bytes->forward(*shape, input, packed, zero_point, {nullptr, epilogue}, threads); });
}

int adderize_to_bytes(int64_t count, const float *input, float steps, float zero_point, int levels, uint8_t *output, int threads) {
  if (count < 0 || threads < 1 || !(steps > 0) || !std::isfinite(zero_point) || levels < 1 || levels > 255)
    return ADDERIZE_BAD_ARGUMENT;
  if (count == 0) return ADDERIZE_OK;
  if (!input || !output) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().bytes->to_bytes(count, input, steps, zero_point, levels, output, threads); });
}

int adderize_max_pool_u8(const adderize_shape *shape, const uint8_t *input, uint8_t *output, int threads) {
  if (!valid_pool(shape) || threads < 1) return ADDERIZE_BAD_ARGUMENT;
  if (outputs(*shape) == 0) return ADDERIZE_OK;
  if (!input || !output) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().bytes->max_pool(*shape, input, output, threads); });
}

int adderize_transpose(int64_t batch, int64_t rows, int64_t columns, const float *input, float *output, int threads) {
  if (batch < 0 || rows < 0 || columns < 0 || threads < 1 || !small(batch, rows, columns, 1)) return ADDERIZE_BAD_ARGUMENT;
  if (batch == 0 || rows == 0 || columns == 0) return ADDERIZE_OK;
  if (!input || !output) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().transpose(batch, rows, columns, input, output, threads); });
}

int adderize_channel_totals(int64_t positions, int64_t channels, const float *input, double *totals, int threads) {
  if (positions < 1 || channels < 1 || !input || !totals || threads < 1) return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().channel_totals(positions, channels, input, totals, threads); });
}

int adderize_register_loop(int form, int64_t rounds, const float operands[3], int threads, int64_t *pairs, double *total) {
  if (form < ADDERIZE_LOOP_MULTIPLY || form > ADDERIZE_LOOP_BYTES || rounds < 1 || rounds > most_rounds || threads < 1)
    return ADDERIZE_BAD_ARGUMENT;
  if (!operands || !pairs || !total || (form == ADDERIZE_LOOP_BYTES && !(is_byte(operands[0]) && is_byte(operands[1]))))
    return ADDERIZE_BAD_ARGUMENT;
  return guarded([&] { active().register_loop(form, rounds, operands, threads, pairs, total); });
}

}  // extern "C"
