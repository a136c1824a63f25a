/* The layers of integer adder networks, the same for every network.
 *
 * Additions, subtractions, shifts and comparisons only: nothing is multiplied or divided, not even
 * to find a place in memory. Images are rows of pixels, a pixel's channels side by side. Sums are
 * 32-bit integers in two's complement, and the exporter has proved that they hold every result. */
#ifndef ADDERIZE_LAYERS_H
#define ADDERIZE_LAYERS_H

#include <stdint.h>

/* A constant factor is a sum of signed powers of two, a byte each: the lowest five bits say how far
 * to shift to the left, and these what else. A factor of zero is 1 - 1. */
enum { ADDERIZE_SHIFT = 31, ADDERIZE_NEGATIVE = 32, ADDERIZE_LAST = 64 };

/* What follows a sum, channel by channel; `other` is a second operand, where there is one:
 *
 *   (factor * sum + other_factor * other + bias) >> fraction, kept within low .. high
 *
 * Without terms a sum stays as it is. */
typedef struct adderize_epilogue {
  const uint8_t *terms;       /* of the channels' factors, one behind the other */
  const int32_t *bias;        /* of the channels, with half a unit, so that ties round up */
  const uint8_t *other_terms; /* of the one factor of the other operand */
  int32_t low, high;
  uint8_t fraction;
  uint8_t drop, other_drop; /* bits that the operands lose first, rounded */
  uint8_t shared;           /* 1: all channels have the same factor and bias */
  uint8_t bytes;            /* 1: the results are bytes, 0: int32_t */
  uint8_t other_bytes;      /* likewise the other operand */
} adderize_epilogue;

/* Windows that move over an image. Sizes are in pixels, steps in values. */
typedef struct adderize_windows {
  int16_t rows, columns, channels; /* of the image */
  int16_t output_rows, output_columns;
  int16_t kernel_rows, kernel_columns;
  int16_t top, left; /* of the first window: 0, or negative where it begins in the padding */
  int16_t stride_rows, stride_columns;
  int16_t dilation_rows, dilation_columns;
  int32_t start;                         /* the first window's first value */
  int32_t row_step, column_step;         /* from window to window */
  int32_t tap_row_step, tap_column_step; /* from tap to tap in a window */
} adderize_windows;

/* What the filters of a group see of a patch: `runs` of `run` values, `skip` values between them.
 * The next group sees the next `run` values. */
typedef struct adderize_groups {
  int16_t groups, filters; /* filters of each group */
  int16_t runs;
  int32_t run, skip;
} adderize_groups;

/* Distances of bytes from filters. The filters of a group come in fours, interleaved: four bytes
 * for each value of the patch, or two where they have 4 bits, the low half of a byte first. Those
 * that are left over come one behind the other, in bytes. */
typedef struct adderize_adder {
  adderize_groups groups;
  const uint8_t *filters;
  uint8_t zero;          /* what surrounds the image */
  uint8_t offset, shift; /* 4 bits q of a filter are the byte offset + (q << shift) */
  adderize_epilogue epilogue;
} adderize_adder;

/* Sums of values that have constant factors. */
typedef struct adderize_product {
  adderize_groups groups;
  const uint8_t *terms; /* of the filters' factors, one behind the other: shifts to the right */
  const int32_t *bias;
  const int32_t *pad;  /* what surrounds the image, for each channel */
  uint8_t input_bytes; /* 1: the input is bytes, 0: int32_t */
  uint8_t lift;        /* how far the input is shifted to the left first */
  adderize_epilogue epilogue;
} adderize_product;

/* Sums over windows. */
typedef struct adderize_sum {
  int32_t pad;         /* what surrounds the image */
  uint8_t input_bytes; /* 1: the input is bytes, 0: int32_t */
  uint8_t drop;        /* bits that the input loses first, rounded */
  adderize_epilogue epilogue;
} adderize_sum;

/* Values one by one: `outer` times, for each channel, `inner` of them. */
typedef struct adderize_scale {
  int32_t outer, channels, inner;
  uint8_t input_bytes; /* 1: the input is bytes, 0: int32_t */
  adderize_epilogue epilogue;
} adderize_scale;

/* Values that move, dimension by dimension, the last one fastest. After each line of a dimension
 * comes the step to the next one. */
typedef struct adderize_move {
  int32_t sizes[5], input_steps[5], output_steps[5];
  uint8_t bytes; /* 1: the values are bytes, 0: int32_t */
} adderize_move;

/* An `other` that is not there, and a `patch` of windows of one pixel, are NULL. An output may lie
 * where an input of the same call did only in adderize_rescale and adderize_clamp. */

/* Adder layers; `patch` holds a window. Those of _4bit read filters of 4 bits. */
void adderize_adder_conv(const adderize_windows *windows, const adderize_adder *layer,
                         const uint8_t *input, const void *other, void *output, uint8_t *patch);
void adderize_adder_conv_4bit(const adderize_windows *windows, const adderize_adder *layer,
                              const uint8_t *input, const void *other, void *output,
                              uint8_t *patch);
void adderize_adder_linear(int32_t rows, const adderize_adder *layer, const uint8_t *input,
                           const void *other, void *output);
void adderize_adder_linear_4bit(int32_t rows, const adderize_adder *layer, const uint8_t *input,
                                const void *other, void *output);

/* Layers of constant factors; `patch` holds a window, or a row of a linear layer's input. */
void adderize_shift_conv(const adderize_windows *windows, const adderize_product *layer,
                         const void *input, const void *other, void *output, int32_t *patch);
void adderize_shift_linear(int32_t rows, const adderize_product *layer, const void *input,
                           const void *other, void *output, int32_t *patch);

/* Sums and the largest values of windows, channel by channel. */
void adderize_sum_pool(const adderize_windows *windows, const adderize_sum *layer,
                       const void *input, const void *other, void *output);
void adderize_max_pool_bytes(const adderize_windows *windows, const uint8_t *input,
                             uint8_t *output);
void adderize_max_pool_words(const adderize_windows *windows, const int32_t *input,
                             int32_t *output);

/* Values in another scale, as bytes or as int32_t; within bounds. */
void adderize_rescale(const adderize_scale *layer, const void *input, const void *other,
                      void *output);
void adderize_clamp_bytes(int32_t count, uint8_t low, uint8_t high, const uint8_t *input,
                          uint8_t *output);
void adderize_clamp_words(int32_t count, int32_t low, int32_t high, const int32_t *input,
                          int32_t *output);

/* Values in other places: by steps, by a table of the places that they come from, all the same. */
void adderize_move_values(const adderize_move *move, const void *input, void *output);
void adderize_pick_bytes(int32_t count, const uint32_t *places, const uint8_t *input,
                         uint8_t *output);
void adderize_pick_words(int32_t count, const uint32_t *places, const int32_t *input,
                         int32_t *output);
void adderize_fill_bytes(int32_t count, uint8_t value, uint8_t *output);
void adderize_fill_words(int32_t count, int32_t value, int32_t *output);

#endif
