// The sign variant of the filter gradient: dF[co, tap, ci] = sum over n and p of g[n, p, co] * sgn(x - F[co, tap, ci]); and the
// sums of g * x of depthwise layers, from which their full one is made.
//
// A task sums a chunk of the filters over a share of the outputs. Band after band it copies what it needs of x, padded, and of g; a
// band is summed in registers, all bands in float64.
#pragma once

#include "f32/sign_block.h"
#include "f32/window.h"
#include "kernels.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace adderize { namespace {

constexpr int64_t band_outputs = 128;                    // longer sums in a register lose digits
constexpr int64_t chunk_vectors = 4, chunk_inputs = 64;  // of output channels, input channels: a chunk's window and filters
constexpr int64_t chunk_elements = 1024;                 // stay in the second-level cache
constexpr int64_t wanted_sign_tasks = 32, most_shared_sums = 1 << 20;

// Depthwise, the lanes are groups: one group of all channels, whose filters see a single input channel.
struct SignPlan {
  adderize_shape s;
  const float *grad, *input;
  float *out;
  Filters filters;  // without data: sums of g * x
  bool depthwise;
  int64_t groups, og, cg, taps;
  Parts images, rows, columns;    // of the outputs: a band is a part of each
  Parts shares, outputs, inputs;  // of the bands; chunks of a group's channels
  int64_t threads, window_floats, chunk_sums;
  float *windows, *grads, *packed;  // of each worker
  double *sums;                     // of each chunk and share or, where there is one share, of each worker

  int64_t bands() const { return images.count * rows.count * columns.count; }
  int64_t chunks() const { return groups * outputs.count * inputs.count; }
};

// What a task sums; channels count from the group's first.
struct SignChunk {
  int64_t group;
  Span outputs, inputs;

  int64_t vectors() const { return ceil_div(outputs.count(), V); }
};

SignChunk chunk_of(const SignPlan &p, int64_t number) {
  TaskIndex index = {number};
  const Span inputs = p.inputs[index.take(p.inputs.count)], outputs = p.outputs[index.take(p.outputs.count)];
  return {index.rest, outputs, inputs};
}

Parts in_bands(int64_t count, int64_t size) { return at_most(count, ceil_div(count, max(min(count, size), 1))); }

SignPlan plan_signs(const adderize_shape &s, int threads) {
  SignPlan p = {};
  p.s = s;
  p.depthwise = s.c == s.groups && s.cout == s.groups;
  p.groups = p.depthwise ? 1 : s.groups;
  p.og = s.cout / p.groups;
  p.cg = s.c / s.groups;
  p.taps = s.kh * s.kw;
  p.columns = in_bands(s.ow, band_outputs);
  p.rows = in_bands(s.oh, band_outputs / s.ow);
  p.images = in_bands(s.n, band_outputs / (s.oh * s.ow));
  p.outputs = parts_of(p.og, V * in_bands(ceil_div(p.og, V), p.depthwise ? 1 : chunk_vectors).size);
  p.inputs = in_bands(p.cg, min(chunk_inputs, chunk_elements / p.taps));
  const int64_t filters = s.cout * p.taps * p.cg;
  const int64_t shares = min(ceil_div(wanted_sign_tasks, p.chunks()), max(most_shared_sums / filters, 1));
  p.shares = at_most(p.bands(), min(shares, p.bands()));
  p.threads = max(1, min(threads, p.chunks() * p.shares.count));
  const int64_t rows = reach(p.rows.size, s.stride_h, s.kh, s.dilation_h);
  const int64_t columns = reach(p.columns.size, s.stride_w, s.kw, s.dilation_w);
  p.window_floats = p.images.size * rows * columns * (p.depthwise ? V : p.inputs.size) + V;
  p.chunk_sums = round_up(p.outputs.size, V) * p.taps * p.inputs.size;
  return p;
}

// Filters of a chunk, [vector][tap][input channel][lane], with -0 for +0. False where one is not for quick_sign.
bool pack_signs(const SignPlan &p, const SignChunk &chunk, float *out) {
  const int64_t *stride = p.filters.stride;
  ivec suited = ivec{} - 1;
  for (int64_t co = chunk.outputs.first; co < chunk.outputs.last; co += V)
    for (int64_t tap = 0; tap < p.taps; ++tap)
      for (int64_t ci = chunk.inputs.first; ci < chunk.inputs.last; ++ci, out += V) {
        const float *from = p.filters.tap(tap / p.s.kw, tap % p.s.kw) + (chunk.group * p.og + co) * stride[0] + ci * stride[1];
        vec filter = {};
        for (int64_t lane = 0; lane < min(V, chunk.outputs.last - co); ++lane) filter[lane] = from[lane * stride[0]];
        suited &= suits_quick_sign(filter);
        filter = (vec)((ivec)filter | ((ivec)(filter == vec{}) & INT32_MIN));
        store(out, filter);
      }
  return every_lane(suited);
}

// A band, and where its copies lie: x [image][row][column][channel], g [vector][position][lane].
struct SignBand {
  Span images, rows, columns;
  Window window;
  SeenPositions positions;
  float *x, *g;

  // The others follow on it: a band has all columns or a single row, all rows or a single image.
  int64_t first_output(const adderize_shape &s) const { return (images.first * s.oh + rows.first) * s.ow + columns.first; }
};

SignBand band_of(const SignPlan &p, const SignChunk &chunk, int64_t number, float *x, float *g) {
  const adderize_shape &s = p.s;
  TaskIndex index = {number};
  const Span columns = p.columns[index.take(p.columns.count)], rows = p.rows[index.take(p.rows.count)];
  const Span images = p.images[index.rest];
  const Window window = {rows.first * s.stride_h - s.padding_h, reach(rows.count(), s.stride_h, s.kh, s.dilation_h),
                         columns.first * s.stride_w - s.padding_w, reach(columns.count(), s.stride_w, s.kw, s.dilation_w)};
  const int64_t channels = p.depthwise ? chunk.outputs.count() : chunk.inputs.count(), row = window.columns * channels;
  return {images,
          rows,
          columns,
          window,
          {images.count(), rows.count(), columns.count(), window.rows * row, s.stride_h * row, s.stride_w * channels},
          x,
          g};
}

void copy_inputs(const SignPlan &p, const SignChunk &chunk, const SignBand &band) {
  const adderize_shape &s = p.s;
  const Span seen =
      p.depthwise ? chunk.outputs : Span{chunk.group * p.cg + chunk.inputs.first, chunk.group * p.cg + chunk.inputs.last};
  const float *input = p.input + band.images.first * s.h * s.w * s.c + seen.first;
  for (int64_t n = 0; n < band.images.count(); ++n)
    copy_window({input + n * s.h * s.w * s.c, s.h, s.w, seen.count(), s.c}, band.window, band.x + n * band.positions.image);
}

void copy_gradients(const SignPlan &p, const SignChunk &chunk, const SignBand &band) {
  const adderize_shape &s = p.s;
  float *out = band.g;
  for (int64_t co = chunk.outputs.first; co < chunk.outputs.last; co += V) {
    const float *from = p.grad + band.first_output(s) * s.cout + chunk.group * p.og + co;
    const int64_t lanes = min(V, chunk.outputs.last - co);
    for (int64_t i = 0; i < band.positions.count(); ++i, out += V) store(out, load(from + i * s.cout, lanes));
  }
}

// What a band will copy, where all of it is needed: with a single chunk.
Upcoming upcoming(const SignPlan &p, const SignChunk &chunk, int64_t number) {
  Upcoming next;
  if (p.chunks() > 1) return next;
  const adderize_shape &s = p.s;
  const SignBand band = band_of(p, chunk, number, nullptr, nullptr);
  const int64_t calls = chunk.vectors() * p.taps * ceil_div(p.cg, most_sign_elements), image = s.h * s.w * s.c;
  next.add(p.grad + band.first_output(s) * s.cout, band.positions.count() * s.cout, calls);
  if (band.images.count() > 1)
    next.add(p.input + band.images.first * image, band.images.count() * image, calls);
  else
    next.add({p.input + band.images.first * image, s.h, s.w, s.c, s.c}, band.window, calls);
  return next;
}

// The filter elements that see neighbours in memory: input channels of a tap or, depthwise, taps of a row.
template <bool depthwise>
void sum_band(const SignPlan &p, const SignChunk &chunk, const SignBand &band, const SumTerms *table, const float *filters,
              double *sums, Upcoming &next) {
  const int64_t channels = depthwise ? chunk.outputs.count() : chunk.inputs.count();
  const int64_t column = p.s.dilation_w * channels, row = p.s.dilation_h * band.window.columns * channels;
  const int64_t elements = depthwise ? p.s.kw : channels, runs = depthwise ? p.s.kh : p.taps;
  const int64_t blocks = ceil_div(elements, most_sign_elements);
  const SeenPositions positions = band.positions.joined();
  const float *g = band.g;
  for (int64_t vector = 0; vector < chunk.vectors(); ++vector, g += positions.count() * V)
    for (int64_t run = 0; run < runs; ++run) {
      const float *x = band.x + (depthwise ? run * row : run / p.s.kw * row + run % p.s.kw * column);
      for (int64_t i = 0; i < blocks; ++i) {
        const Span block = share_of(elements, blocks, i);
        next.fetch();
        table[block.count() - 1](positions, g, x + block.first * (depthwise ? column : 1), column, filters, sums);
        filters += block.count() * V;
        sums += block.count() * V;
      }
    }
}

void write_signs(const SignPlan &p, const SignChunk &chunk, const double *sums) {
  for (int64_t co = chunk.outputs.first; co < chunk.outputs.last; co += V)
    for (int64_t tap = 0; tap < p.taps; ++tap)
      for (int64_t ci = chunk.inputs.first; ci < chunk.inputs.last; ++ci, sums += V)
        for (int64_t lane = 0; lane < min(V, chunk.outputs.last - co); ++lane)
          p.out[((chunk.group * p.og + co + lane) * p.taps + tap) * p.cg + ci] = float(sums[lane]);
}

template <bool depthwise>
const SumTerms *table_of(bool products, bool quick) {
  if (depthwise && products) return sums_of_terms<Term::product, true>.entries;
  return quick ? sums_of_terms<Term::quick_sign, depthwise>.entries : sums_of_terms<Term::sign, depthwise>.entries;
}

void sum_share(const SignPlan &p, int64_t task, int worker) {
  TaskIndex index = {task};
  const Span bands = p.shares[index.take(p.shares.count)];
  const SignChunk chunk = chunk_of(p, index.rest);
  double *sums = p.sums + (p.shares.count == 1 ? worker : task) * p.chunk_sums;
  float *packed = p.packed + worker * p.chunk_sums;
  memset(sums, 0, size_t(p.chunk_sums) * sizeof(double));
  const bool products = !p.filters.data, suited = !products && pack_signs(p, chunk, packed);
  for (int64_t number = bands.first; number < bands.last; ++number) {
    const SignBand band =
        band_of(p, chunk, number, p.windows + worker * p.window_floats, p.grads + worker * band_outputs * chunk_vectors * V);
    copy_gradients(p, chunk, band);
    copy_inputs(p, chunk, band);
    const bool quick = suited && scale_for_quick_sign(band.x, band.positions.image * band.images.count());
    if (suited && !quick) copy_inputs(p, chunk, band);
    Upcoming next = number + 1 < bands.last ? upcoming(p, chunk, number + 1) : Upcoming{};
    if (p.depthwise)
      sum_band<true>(p, chunk, band, table_of<true>(products, quick), packed, sums, next);
    else
      sum_band<false>(p, chunk, band, table_of<false>(products, quick), packed, sums, next);
  }
  if (p.shares.count == 1) write_signs(p, chunk, sums);
}

// The shares of a chunk, one after the other, so that threads change no bit.
void add_shares(const SignPlan &p, int64_t number) {
  double *sums = p.sums + number * p.shares.count * p.chunk_sums;
  for (int64_t share = 1; share < p.shares.count; ++share)
    for (int64_t i = 0; i < p.chunk_sums; ++i) sums[i] += sums[share * p.chunk_sums + i];
  write_signs(p, chunk_of(p, number), sums);
}

void sign_filter_gradient(const adderize_shape &s, const float *grad, const float *input, const Filters &filters, float *out,
                          int threads) {
  SignPlan p = plan_signs(s, threads);
  p.grad = grad;
  p.input = input;
  p.filters = filters;
  p.out = out;
  const int64_t tasks = p.chunks() * p.shares.count;
  allocate([&](Arena &arena) {
    arena.take(p.windows, p.threads * p.window_floats);
    arena.take(p.grads, p.threads * band_outputs * chunk_vectors * V);
    arena.take(p.packed, p.threads * p.chunk_sums);
    arena.take(p.sums, (p.shares.count == 1 ? p.threads : tasks) * p.chunk_sums);
  });
  parallel(tasks, int(p.threads), [&](int64_t task, int worker) { sum_share(p, task, worker); });
  if (p.shares.count > 1) parallel(p.chunks(), int(p.threads), [&](int64_t chunk, int) { add_shares(p, chunk); });
}

void depthwise_products(const adderize_shape &s, const float *grad, const float *input, float *out, int threads) {
  sign_filter_gradient(s, grad, input, Filters{}, out, threads);
}

}}  // namespace adderize
