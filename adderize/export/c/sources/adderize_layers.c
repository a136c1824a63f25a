#include "adderize_layers.h"

#include <stddef.h>

/* C99 leaves to the compiler how negative numbers are shifted to the right and what becomes of a
 * uint32_t above INT32_MAX: where this does not compile, the results would be wrong. */
typedef char adderize_needs_arithmetic_shifts[(-2 >> 1) == -1 ? 1 : -1];
typedef char adderize_needs_wrapping_casts[(int32_t)0xFFFFFFFEu == -2 ? 1 : -1];

/* Without some of its bits, ties rounded up. */
static int32_t rounded(int32_t value, uint8_t bits) {
  return (value + ((INT32_C(1) << bits) >> 1)) >> bits;
}

/* A value times the factor at *terms, which moves on to the next one; `down`, a constant, says that
 * its shifts are to the right, rounding down. Negative numbers are shifted to the left as uint32_t,
 * for C99 does not define it otherwise. */
static inline uint32_t sum_of_terms(int32_t value, const uint8_t **terms, int down) {
  const uint8_t *term = *terms;
  uint32_t sum = 0;
  uint8_t code;
  do {
    uint32_t shifted;
    code = *term++;
    shifted = down ? (uint32_t)(value >> (code & ADDERIZE_SHIFT))
                   : (uint32_t)value << (code & ADDERIZE_SHIFT);
    if (code & ADDERIZE_NEGATIVE)
      sum -= shifted;
    else
      sum += shifted;
  } while (!(code & ADDERIZE_LAST));
  *terms = term;
  return sum;
}

static uint32_t scaled(int32_t value, const uint8_t **terms) {
  return sum_of_terms(value, terms, 0);
}

static uint32_t scaled_down(int32_t value, const uint8_t **terms) {
  return sum_of_terms(value, terms, 1);
}

/* Values of an image, read or written one behind the other. */
typedef struct reader {
  const void *next;
  uint8_t bytes;
} reader;

typedef struct writer {
  const adderize_epilogue *epilogue;
  const uint8_t *terms;
  const int32_t *bias;
  reader other;
  void *next;
} writer;

static int32_t read_value(reader *from) {
  if (from->bytes) {
    const uint8_t *byte = from->next;
    from->next = byte + 1;
    return *byte;
  } else {
    const int32_t *word = from->next;
    from->next = word + 1;
    return *word;
  }
}

static void write_value(writer *to, int32_t value) {
  if (to->epilogue->bytes) {
    uint8_t *byte = to->next;
    *byte = (uint8_t)value;
    to->next = byte + 1;
  } else {
    int32_t *word = to->next;
    *word = value;
    to->next = word + 1;
  }
}

static void start(writer *to, const adderize_epilogue *epilogue, const void *other, void *output) {
  to->epilogue = epilogue;
  to->terms = epilogue->terms;
  to->bias = epilogue->bias;
  to->other.next = other;
  to->other.bytes = epilogue->other_bytes;
  to->next = output;
}

static void first_channel(writer *to) {
  to->terms = to->epilogue->terms;
  to->bias = to->epilogue->bias;
}

/* The next channel's result. */
static void finish(writer *to, int32_t sum) {
  const adderize_epilogue *epilogue = to->epilogue;
  if (epilogue->terms != NULL) {
    uint32_t total = (uint32_t)*to->bias++;
    total += scaled(rounded(sum, epilogue->drop), &to->terms);
    if (epilogue->other_terms != NULL) {
      const uint8_t *terms = epilogue->other_terms;
      int32_t other = read_value(&to->other);
      total += scaled(rounded(other, epilogue->other_drop), &terms);
    }
    sum = (int32_t)total >> epilogue->fraction;
    if (sum < epilogue->low) sum = epilogue->low;
    if (sum > epilogue->high) sum = epilogue->high;
    if (epilogue->shared) first_channel(to);
  }
  write_value(to, sum);
}

/* Whether a place lies within the image. */
static int is_inside(const adderize_windows *windows, int32_t row, int32_t column) {
  return row >= 0 && row < windows->rows && column >= 0 && column < windows->columns;
}

/* The window of bytes at (row, column), `at` values behind the image's first one. */
static void gather_bytes(const adderize_windows *windows, const uint8_t *image, int32_t row,
                         int32_t column, int32_t at, uint8_t zero, uint8_t *patch) {
  int32_t rows, columns, channels;
  for (rows = windows->kernel_rows; rows != 0; --rows) {
    int32_t tap_column = column, tap = at;
    for (columns = windows->kernel_columns; columns != 0; --columns) {
      channels = windows->channels;
      if (is_inside(windows, row, tap_column)) {
        const uint8_t *pixel = image + tap;
        for (; channels != 0; --channels) *patch++ = *pixel++;
      } else {
        for (; channels != 0; --channels) *patch++ = zero;
      }
      tap_column += windows->dilation_columns;
      tap += windows->tap_column_step;
    }
    row += windows->dilation_rows;
    at += windows->tap_row_step;
  }
}

static uint32_t distance(int32_t value, int32_t tap) {
  int32_t difference = value - tap;
  return (uint32_t)(difference < 0 ? -difference : difference);
}

/* Distances of a patch from four filters; returns where the next ones lie. */
typedef const uint8_t *distances_of_four(const adderize_adder *layer, const uint8_t *patch,
                                         const uint8_t *filters, uint32_t *sums);

static const uint8_t *distances_in_bytes(const adderize_adder *layer, const uint8_t *patch,
                                         const uint8_t *filters, uint32_t *sums) {
  uint32_t first = 0, second = 0, third = 0, fourth = 0;
  int32_t runs = layer->groups.runs;
  for (;;) {
    const uint8_t *end = patch + layer->groups.run;
    for (; patch != end; ++patch) {
      int32_t value = *patch;
      first += distance(value, filters[0]);
      second += distance(value, filters[1]);
      third += distance(value, filters[2]);
      fourth += distance(value, filters[3]);
      filters += 4;
    }
    if (--runs == 0) break;
    patch += layer->groups.skip;
  }
  sums[0] = first;
  sums[1] = second;
  sums[2] = third;
  sums[3] = fourth;
  return filters;
}

static const uint8_t *distances_in_4_bits(const adderize_adder *layer, const uint8_t *patch,
                                          const uint8_t *filters, uint32_t *sums) {
  uint32_t first = 0, second = 0, third = 0, fourth = 0;
  uint8_t shift = layer->shift;
  int32_t runs = layer->groups.runs;
  for (;;) {
    const uint8_t *end = patch + layer->groups.run;
    for (; patch != end; ++patch) {
      int32_t value = *patch - layer->offset;
      int32_t low = filters[0], high = filters[1];
      first += distance(value, (low & 15) << shift);
      second += distance(value, (low >> 4) << shift);
      third += distance(value, (high & 15) << shift);
      fourth += distance(value, (high >> 4) << shift);
      filters += 2;
    }
    if (--runs == 0) break;
    patch += layer->groups.skip;
  }
  sums[0] = first;
  sums[1] = second;
  sums[2] = third;
  sums[3] = fourth;
  return filters;
}

static const uint8_t *distance_of_one(const adderize_adder *layer, const uint8_t *patch,
                                      const uint8_t *filters, uint32_t *sum) {
  uint32_t total = 0;
  int32_t runs = layer->groups.runs;
  for (;;) {
    const uint8_t *end = patch + layer->groups.run;
    while (patch != end) total += distance(*patch++, *filters++);
    if (--runs == 0) break;
    patch += layer->groups.skip;
  }
  *sum = total;
  return filters;
}

/* The results of all filters on one patch. */
static void compare(const adderize_adder *layer, distances_of_four *of_four, const uint8_t *patch,
                    writer *to) {
  const uint8_t *filters = layer->filters;
  int32_t groups, left;
  first_channel(to);
  for (groups = layer->groups.groups; groups != 0; --groups) {
    for (left = layer->groups.filters; left >= 4; left -= 4) {
      uint32_t sums[4];
      filters = of_four(layer, patch, filters, sums);
      finish(to, (int32_t)sums[0]);
      finish(to, (int32_t)sums[1]);
      finish(to, (int32_t)sums[2]);
      finish(to, (int32_t)sums[3]);
    }
    for (; left != 0; --left) {
      uint32_t sum;
      filters = distance_of_one(layer, patch, filters, &sum);
      finish(to, (int32_t)sum);
    }
    patch += layer->groups.run;
  }
}

static void adder_conv(const adderize_windows *windows, const adderize_adder *layer,
                       distances_of_four *of_four, const uint8_t *input, const void *other,
                       void *output, uint8_t *patch) {
  int32_t row = windows->top, line = windows->start, rows, columns;
  writer to;
  start(&to, &layer->epilogue, other, output);
  for (rows = windows->output_rows; rows != 0; --rows) {
    int32_t column = windows->left, at = line;
    for (columns = windows->output_columns; columns != 0; --columns) {
      if (patch != NULL) gather_bytes(windows, input, row, column, at, layer->zero, patch);
      compare(layer, of_four, patch != NULL ? patch : input + at, &to);
      column += windows->stride_columns;
      at += windows->column_step;
    }
    row += windows->stride_rows;
    line += windows->row_step;
  }
}

void adderize_adder_conv(const adderize_windows *windows, const adderize_adder *layer,
                         const uint8_t *input, const void *other, void *output, uint8_t *patch) {
  adder_conv(windows, layer, distances_in_bytes, input, other, output, patch);
}

void adderize_adder_conv_4bit(const adderize_windows *windows, const adderize_adder *layer,
                              const uint8_t *input, const void *other, void *output,
                              uint8_t *patch) {
  adder_conv(windows, layer, distances_in_4_bits, input, other, output, patch);
}

static void adder_linear(int32_t rows, const adderize_adder *layer, distances_of_four *of_four,
                         const uint8_t *input, const void *other, void *output) {
  writer to;
  start(&to, &layer->epilogue, other, output);
  for (; rows != 0; --rows) {
    compare(layer, of_four, input, &to);
    input += layer->groups.run;
  }
}

void adderize_adder_linear(int32_t rows, const adderize_adder *layer, const uint8_t *input,
                           const void *other, void *output) {
  adder_linear(rows, layer, distances_in_bytes, input, other, output);
}

void adderize_adder_linear_4bit(int32_t rows, const adderize_adder *layer, const uint8_t *input,
                                const void *other, void *output) {
  adder_linear(rows, layer, distances_in_4_bits, input, other, output);
}

static int32_t value_at(const void *image, int32_t at, uint8_t bytes) {
  return bytes ? ((const uint8_t *)image)[at] : ((const int32_t *)image)[at];
}

static int32_t lifted(int32_t value, uint8_t bits) {
  return (int32_t)((uint32_t)value << bits);
}

static void gather_words(const adderize_windows *windows, const adderize_product *layer,
                         const void *image, int32_t row, int32_t column, int32_t at,
                         int32_t *patch) {
  int32_t rows, columns, channels;
  for (rows = windows->kernel_rows; rows != 0; --rows) {
    int32_t tap_column = column, tap = at;
    for (columns = windows->kernel_columns; columns != 0; --columns) {
      int inside = is_inside(windows, row, tap_column);
      const int32_t *pad = layer->pad;
      int32_t from = tap;
      for (channels = windows->channels; channels != 0; --channels) {
        if (inside)
          *patch++ = lifted(value_at(image, from++, layer->input_bytes), layer->lift);
        else
          *patch++ = lifted(*pad++, layer->lift);
      }
      tap_column += windows->dilation_columns;
      tap += windows->tap_column_step;
    }
    row += windows->dilation_rows;
    at += windows->tap_row_step;
  }
}

/* The results of all filters on one patch. */
static void add_up(const adderize_product *layer, const int32_t *patch, writer *to) {
  const uint8_t *terms = layer->terms;
  const int32_t *bias = layer->bias;
  int32_t groups, filters;
  first_channel(to);
  for (groups = layer->groups.groups; groups != 0; --groups) {
    for (filters = layer->groups.filters; filters != 0; --filters) {
      const int32_t *value = patch;
      uint32_t sum = (uint32_t)*bias++;
      int32_t runs = layer->groups.runs;
      for (;;) {
        const int32_t *end = value + layer->groups.run;
        while (value != end) sum += scaled_down(*value++, &terms);
        if (--runs == 0) break;
        value += layer->groups.skip;
      }
      finish(to, (int32_t)sum);
    }
    patch += layer->groups.run;
  }
}

void adderize_shift_conv(const adderize_windows *windows, const adderize_product *layer,
                         const void *input, const void *other, void *output, int32_t *patch) {
  int32_t row = windows->top, line = windows->start, rows, columns;
  writer to;
  start(&to, &layer->epilogue, other, output);
  for (rows = windows->output_rows; rows != 0; --rows) {
    int32_t column = windows->left, at = line;
    for (columns = windows->output_columns; columns != 0; --columns) {
      gather_words(windows, layer, input, row, column, at, patch);
      add_up(layer, patch, &to);
      column += windows->stride_columns;
      at += windows->column_step;
    }
    row += windows->stride_rows;
    line += windows->row_step;
  }
}

void adderize_shift_linear(int32_t rows, const adderize_product *layer, const void *input,
                           const void *other, void *output, int32_t *patch) {
  int32_t at = 0, left;
  writer to;
  start(&to, &layer->epilogue, other, output);
  for (; rows != 0; --rows) {
    int32_t *value = patch;
    for (left = layer->groups.run; left != 0; --left)
      *value++ = lifted(value_at(input, at++, layer->input_bytes), layer->lift);
    add_up(layer, patch, &to);
  }
}

/* The sum of a channel's values in a window. */
static int32_t window_sum(const adderize_windows *windows, const adderize_sum *layer,
                          const void *input, int32_t row, int32_t column, int32_t at) {
  int32_t sum = 0, rows, columns;
  for (rows = windows->kernel_rows; rows != 0; --rows) {
    int32_t tap_column = column, tap = at;
    for (columns = windows->kernel_columns; columns != 0; --columns) {
      if (is_inside(windows, row, tap_column))
        sum += rounded(value_at(input, tap, layer->input_bytes), layer->drop);
      else
        sum += layer->pad;
      ++tap_column;
      tap += windows->tap_column_step;
    }
    ++row;
    at += windows->tap_row_step;
  }
  return sum;
}

void adderize_sum_pool(const adderize_windows *windows, const adderize_sum *layer,
                       const void *input, const void *other, void *output) {
  int32_t row = windows->top, line = windows->start, rows, columns, channel;
  writer to;
  start(&to, &layer->epilogue, other, output);
  for (rows = windows->output_rows; rows != 0; --rows) {
    int32_t column = windows->left, at = line;
    for (columns = windows->output_columns; columns != 0; --columns) {
      first_channel(&to);
      for (channel = 0; channel != windows->channels; ++channel)
        finish(&to, window_sum(windows, layer, input, row, column, at + channel));
      column += windows->stride_columns;
      at += windows->column_step;
    }
    row += windows->stride_rows;
    line += windows->row_step;
  }
}

/* The largest value of a channel in a window, at least `lowest`. */
static int32_t window_maximum(const adderize_windows *windows, const void *input, uint8_t bytes,
                              int32_t lowest, int32_t row, int32_t column, int32_t at) {
  int32_t rows, columns;
  for (rows = windows->kernel_rows; rows != 0; --rows) {
    int32_t tap_column = column, tap = at;
    for (columns = windows->kernel_columns; columns != 0; --columns) {
      if (is_inside(windows, row, tap_column)) {
        int32_t value = value_at(input, tap, bytes);
        if (value > lowest) lowest = value;
      }
      tap_column += windows->dilation_columns;
      tap += windows->tap_column_step;
    }
    row += windows->dilation_rows;
    at += windows->tap_row_step;
  }
  return lowest;
}

static void max_pool(const adderize_windows *windows, const void *input, uint8_t *bytes,
                     int32_t *words) {
  int32_t row = windows->top, line = windows->start, rows, columns, channel;
  for (rows = windows->output_rows; rows != 0; --rows) {
    int32_t column = windows->left, at = line;
    for (columns = windows->output_columns; columns != 0; --columns) {
      for (channel = 0; channel != windows->channels; ++channel) {
        int32_t largest = window_maximum(windows, input, bytes != NULL,
                                         bytes != NULL ? 0 : INT32_MIN, row, column, at + channel);
        if (bytes != NULL)
          *bytes++ = (uint8_t)largest;
        else
          *words++ = largest;
      }
      column += windows->stride_columns;
      at += windows->column_step;
    }
    row += windows->stride_rows;
    line += windows->row_step;
  }
}

void adderize_max_pool_bytes(const adderize_windows *windows, const uint8_t *input,
                             uint8_t *output) {
  max_pool(windows, input, output, NULL);
}

void adderize_max_pool_words(const adderize_windows *windows, const int32_t *input,
                             int32_t *output) {
  max_pool(windows, input, NULL, output);
}

void adderize_rescale(const adderize_scale *layer, const void *input, const void *other,
                      void *output) {
  int32_t outer, channels, inner;
  reader from;
  writer to;
  from.next = input;
  from.bytes = layer->input_bytes;
  start(&to, &layer->epilogue, other, output);
  for (outer = layer->outer; outer != 0; --outer) {
    first_channel(&to);
    for (channels = layer->channels; channels != 0; --channels) {
      const uint8_t *terms = to.terms;
      const int32_t *bias = to.bias;
      for (inner = layer->inner; inner != 0; --inner) {
        to.terms = terms;
        to.bias = bias;
        finish(&to, read_value(&from));
      }
    }
  }
}

void adderize_clamp_bytes(int32_t count, uint8_t low, uint8_t high, const uint8_t *input,
                          uint8_t *output) {
  for (; count != 0; --count) {
    uint8_t value = *input++;
    if (value < low) value = low;
    if (value > high) value = high;
    *output++ = value;
  }
}

void adderize_clamp_words(int32_t count, int32_t low, int32_t high, const int32_t *input,
                          int32_t *output) {
  for (; count != 0; --count) {
    int32_t value = *input++;
    if (value < low) value = low;
    if (value > high) value = high;
    *output++ = value;
  }
}

void adderize_move_values(const adderize_move *move, const void *input, void *output) {
  const int32_t *in = move->input_steps, *out = move->output_steps;
  int32_t from = 0, to = 0, i, j, k, l, m;
  for (i = move->sizes[0]; i != 0; --i) {
    for (j = move->sizes[1]; j != 0; --j) {
      for (k = move->sizes[2]; k != 0; --k) {
        for (l = move->sizes[3]; l != 0; --l) {
          for (m = move->sizes[4]; m != 0; --m) {
            if (move->bytes)
              ((uint8_t *)output)[to] = ((const uint8_t *)input)[from];
            else
              ((int32_t *)output)[to] = ((const int32_t *)input)[from];
            from += in[4];
            to += out[4];
          }
          from += in[3];
          to += out[3];
        }
        from += in[2];
        to += out[2];
      }
      from += in[1];
      to += out[1];
    }
    from += in[0];
    to += out[0];
  }
}

void adderize_pick_bytes(int32_t count, const uint32_t *places, const uint8_t *input,
                         uint8_t *output) {
  for (; count != 0; --count) *output++ = input[*places++];
}

void adderize_pick_words(int32_t count, const uint32_t *places, const int32_t *input,
                         int32_t *output) {
  for (; count != 0; --count) *output++ = input[*places++];
}

void adderize_fill_bytes(int32_t count, uint8_t value, uint8_t *output) {
  for (; count != 0; --count) *output++ = value;
}

void adderize_fill_words(int32_t count, int32_t value, int32_t *output) {
  for (; count != 0; --count) *output++ = value;
}
