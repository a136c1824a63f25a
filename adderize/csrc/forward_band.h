// The forward pass: its plan, and what it reads: bands of rows with the sums of their patches.
#pragma once

#include "band.h"
#include "pack.h"
#include "regions.h"

namespace adderize {
namespace {

struct ForwardPlan {
  adderize_shape s;
  const float *input;
  float *output;
  Filters filters;
  int form;
  int64_t cg, og, k, tiles, group_floats;
  bool flat;      // 1x1, unit stride, no padding: positions of all images form one row, read in place
  bool in_place;  // 1x1 of another stride: nothing is copied either
  int64_t band_rows, bands, chunk, chunks, band_columns, buffer_floats;
  bool shared;  // every band is copied once for all chunks
  int64_t tasks, threads;
  float *packed, *sums, *magnitudes, *buffers;
  TapSums taps;
};

// Scratch of one band: the copy, the channel sums of its positions, the patch sums of its outputs.
// The sums are read and written by whole vectors, a vector past their ends.
struct BandView {
  float *copy, *channel, *patch, *magnitude;
};

int64_t band_positions(const ForwardPlan &p, int64_t band_rows) {
  if (p.flat || p.in_place) return band_rows * p.band_columns;
  return ((band_rows - 1) * p.s.stride_h + (p.s.kh - 1) * p.s.dilation_h + 1) * p.band_columns;
}

BandView band_view(const ForwardPlan &p, int64_t index) {
  BandView view;
  view.magnitude = p.buffers + index * p.buffer_floats;
  view.channel = view.magnitude + V;
  view.patch = view.channel + round_up(band_positions(p, p.band_rows), V) + round_up(p.band_columns, V) + 3 * V;
  view.copy = view.patch + round_up(p.band_rows * p.s.ow, V) + V;
  return view;
}

int64_t band_view_floats(const ForwardPlan &p, int64_t band_rows) {
  const int64_t positions = band_positions(p, band_rows);
  const int64_t sums = round_up(positions, V) + round_up(p.band_columns, V) + 5 * V + round_up(band_rows * p.s.ow, V);
  return round_up(sums + (p.flat || p.in_place ? 0 : positions * p.cg), 16);
}

// patch[y][x] = sum over taps of channel[...]: down the columns first, then along the row.
void patch_sums(const ForwardPlan &p, const BandView &view, int64_t rows_out) {
  const adderize_shape &s = p.s;
  float *column = view.channel + round_up(((p.band_rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1) * p.band_columns, V) + V;
  for (int64_t y = 0; y < rows_out; ++y) {
    const float *from = view.channel + y * s.stride_h * p.band_columns;
    for (int64_t x = 0; x < p.band_columns; x += V) {
      vec sum = load(from + x);
      for (int64_t t = 1; t < s.kh; ++t) sum += load(from + x + t * s.dilation_h * p.band_columns);
      store(column + x, sum);
    }
    float *to = view.patch + y * s.ow;
    if (s.stride_w == 1) {
      for (int64_t x = 0; x < s.ow; x += V) {
        vec sum = load(column + x);
        for (int64_t t = 1; t < s.kw; ++t) sum += load(column + x + t * s.dilation_w);
        store(to + x, sum);
      }
    } else {
      for (int64_t x = 0; x < s.ow; ++x) {
        float sum = 0;
        for (int64_t t = 0; t < s.kw; ++t) sum += column[x * s.stride_w + t * s.dilation_w];
        to[x] = sum;
      }
    }
  }
}

int64_t rows_of_band(const ForwardPlan &p, int64_t band) { return least(p.band_rows, p.s.oh - band * p.band_rows); }

// The first input of a band that is read in place.
Grid band_in_place(const ForwardPlan &p, int64_t n, int64_t group, int64_t band) {
  const adderize_shape &s = p.s;
  const int64_t row = s.stride_h * s.w * s.c;
  return {p.input + n * s.h * s.w * s.c + band * p.band_rows * row + group * p.cg, s.stride_w * s.c, row};
}

Image image_of(const ForwardPlan &p, int64_t n, int64_t group) {
  return {p.input + n * p.s.h * p.s.w * p.s.c + group * p.cg, p.s.h, p.s.w, p.cg, p.s.c};
}
Window band_window(const ForwardPlan &p, int64_t band) {
  const adderize_shape &s = p.s;
  return {band * p.band_rows * s.stride_h - s.padding_h, (rows_of_band(p, band) - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1,
          -s.padding_w, p.band_columns};
}

void fill_band(const ForwardPlan &p, int64_t n, int64_t group, int64_t band, const BandView &view) {
  const adderize_shape &s = p.s;
  const int64_t rows_out = rows_of_band(p, band);
  *view.magnitude = 0;
  if (p.flat) {
    if (p.form == ADDERIZE_FORM_EXACT) return;
    const int64_t first = band * p.band_columns, columns = least(p.band_columns, s.ow - first);
    *view.magnitude = channel_sums(p.input + first * s.c + group * p.cg, columns, s.c, p.cg, view.channel);
    return;
  }
  if (p.in_place) {
    const Grid at = band_in_place(p, n, group, band);
    for (int64_t y = 0; y < rows_out && p.form != ADDERIZE_FORM_EXACT; ++y) {
      const float size = channel_sums(at.base + y * at.row, s.ow, at.pixel, p.cg, view.patch + y * s.ow);
      *view.magnitude = size > *view.magnitude ? size : *view.magnitude;
    }
    return;
  }
  const Window window = band_window(p, band);
  copy_window(image_of(p, n, group), window, view.copy);
  if (p.form == ADDERIZE_FORM_EXACT) return;
  *view.magnitude = channel_sums(view.copy, window.rows * window.columns, p.cg, p.cg, view.channel);
  patch_sums(p, view, rows_out);
}

}  // namespace
}  // namespace adderize
