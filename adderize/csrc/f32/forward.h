// The forward pass of layers with enough channels in a group to fill vectors: band by band of rows, each copied with its padding,
// tile by tile of channels and positions, as maxima or as distances.
#pragma once

#include "f32/cancellation.h"
#include "f32/channel_sums.h"
#include "f32/window.h"

namespace adderize { namespace {

struct ForwardPlan {
  adderize_shape s;
  const float *input;
  float *output;
  int form;
  PackedFilters filters;
  bool flat;      // positions of all images form one row, whose bands are columns
  bool in_place;  // a 1x1 kernel without padding: nothing is copied
  int widest;
  BandWork work;                              // bands of rows or, if flat, of columns; chunks of channel tiles
  int64_t cg, width, outputs, buffer_floats;  // channels of a group; positions of a row that a band sees and has
  int64_t threads;
  float *buffers;

  Span rows(int64_t band) const { return flat ? Span{0, 1} : work.bands[band]; }
  Span columns(int64_t band) const { return flat ? work.bands[band] : Span{0, s.ow}; }
  Image image(int64_t n, int64_t group) const { return {input + n * s.h * s.w * s.c + group * cg, s.h, s.w, cg, s.c}; }
};

int64_t positions_of(const ForwardPlan &p, int64_t band_rows) {
  return p.in_place ? band_rows * p.width : reach(band_rows, p.s.stride_h, p.s.kh, p.s.dilation_h) * p.width;
}

// A band's copy, and the sums over channels of its positions and over patches of its outputs, which are read and written by whole
// vectors, a vector past their ends.
struct BandView {
  float *magnitude, *channel, *column, *patch, *copy;
};
BandView band_view(const ForwardPlan &p, int64_t index) {
  BandView view;
  view.magnitude = p.buffers + index * p.buffer_floats;
  view.channel = view.magnitude + V;
  const int64_t rows = p.rows(0).count();
  view.column = view.channel + round_up(positions_of(p, rows), V) + V;
  view.patch = view.column + round_up(p.width, V) + 2 * V;
  view.copy = view.patch + round_up(rows * p.outputs, V) + V;
  return view;
}
int64_t view_floats(const ForwardPlan &p, int64_t band_rows) {
  const int64_t positions = positions_of(p, band_rows);
  const int64_t sums = round_up(positions, V) + round_up(p.width, V) + 5 * V + round_up(band_rows * p.outputs, V);
  return round_up(sums + (p.in_place ? 0 : positions * p.cg), 16);
}

// Where the tiles of a band begin to read.
PixelView band_pixels(const ForwardPlan &p, const BandTask &task, const BandView &view) {
  const adderize_shape &s = p.s;
  if (!p.in_place) return {view.copy, s.stride_w * p.cg, s.stride_h * p.width * p.cg};
  const int64_t position = p.rows(task.band).first * s.stride_h * s.w + p.columns(task.band).first * s.stride_w;
  return {p.image(task.n, task.group).data + position * s.c, s.stride_w * s.c, s.stride_h * s.w * s.c};
}

void fill_view(const ForwardPlan &p, const BandTask &task, const BandView &view) {
  const adderize_shape &s = p.s;
  const Span rows = p.rows(task.band), columns = p.columns(task.band);
  const Window window = forward_window(s, rows);
  if (!p.in_place) copy_window(p.image(task.n, task.group), window, view.copy);
  *view.magnitude = 0;
  if (p.form == ADDERIZE_FORM_EXACT) return;
  if (!p.in_place) {
    *view.magnitude = channel_sums(view.copy, window.rows * window.columns, p.cg, p.cg, view.channel);
    for (int64_t y = 0; y < rows.count(); ++y)
      patch_sums(s, view.channel + y * s.stride_h * p.width, p.width, view.column, view.patch + y * p.outputs);
    return;
  }
  const PixelView at = band_pixels(p, task, view);
  for (int64_t y = 0; y < rows.count(); ++y) {
    const float size = channel_sums(at.base + y * at.row, columns.count(), at.pixel, p.cg, view.patch + y * p.outputs);
    *view.magnitude = size > *view.magnitude ? size : *view.magnitude;
  }
}

// A tile of channels: its filters, and what their outputs are made of and measured by in a region.
struct ChannelTile {
  const float *w;
  FilterSums sums;
  Floor floor;
};

// One channel tile over a region; `at` and `to` belong to its first position.
template <int N>
void forward_region(const ForwardPlan &p, const Region &region, const PixelView &at, const Target &to, const ChannelTile &tile,
                    Upcoming &next) {
  alignas(64) float sums[2 * most_positions * N * V];
  bool exact = p.form == ADDERIZE_FORM_EXACT;
  const int64_t rows = region.rows(), columns = region.columns();
  for (int64_t y = 0; y < rows; y += region.cut.rows) {
    const int r = int(min(region.cut.rows, rows - y));
    for (int64_t i = 0; i < region.cut.columns; ++i) {
      const Span xs = share_of(columns, region.cut.columns, i);
      const int q = int(xs.count());
      const PixelView here = {at.base + y * at.row + xs.first * at.pixel, at.pixel, at.row};
      const Target target = to.at(xs.first, y);
      prefetch_tile<N>(target.out, to.pixel, to.row, q, r);
      next.fetch();
      if (!exact) {
        sum_tiles<Sum::maxima, N>[r - 1][q - 1](here, region.runs, tile.w, sums);
        if (store_maxima<N>(sums, q, r, target, tile.sums.constant, tile.floor)) continue;
        exact = true;  // its neighbours of this region will most likely cancel too
      }
      sum_tiles<Sum::distances, N>[r - 1][q - 1](here, region.runs, tile.w, sums);
      store_distances<N>(sums, q, r, target, tile.sums.unseen);
    }
  }
}

// A chunk of channel tiles over the regions of a plane; `at` and `to` belong to its first position.
void forward_plane(const ForwardPlan &p, const BandTask &task, const Regions &regions, const PixelView &at, Target to,
                   float magnitude, Upcoming &next) {
  const PackedFilters &filters = p.filters;
  float *out = to.out;
  const Span tiles = p.work.chunks[task.chunk];
  for (int64_t index = tiles.first; index < tiles.last; ++index) {
    const int64_t first = index * tile_channels, lane = task.group * filters.group_lanes + first;
    const int vectors = vectors_of(filters.og, index);
    to.out = out + first;
    to.channels = min(filters.og - first, tile_channels);
    ChannelTile tile = {};
    if (p.form != ADDERIZE_FORM_FAST) tile.floor = floor_of(filters, p.s, magnitude, filters.sums.magnitude + lane, to.channels);
    for (const Region &region : regions) {
      tile.w = filters.tile(task.group, index) + region.filters * vectors * V;
      tile.sums = filter_sums(filters, region, lane, vectors);
      (vectors == 2 ? forward_region<2> : forward_region<1>)(p, region, region.pixels(at), to.of(region), tile, next);
    }
  }
}

// What the positions of a band see of its copy, or of the input where nothing is copied.
Regions band_regions(const ForwardPlan &p, int64_t band, const PixelView &at) {
  const adderize_shape &s = p.s;
  Reading read = {vertical_axis(s), horizontal_axis(s), at.pixel / s.stride_w, at.row / s.stride_h, p.cg};
  read.vertical.base += p.rows(band).first * s.stride_h;
  return regions_of(read, p.rows(band).count(), p.columns(band).count(), p.widest);
}

void forward_task(const ForwardPlan &p, int64_t number, int worker) {
  const adderize_shape &s = p.s;
  const auto view_of = [&](const BandTask &task) { return band_view(p, p.work.buffer(task, worker)); };
  const BandTask task = p.work.task(number);
  const BandView view = view_of(task);
  if (!p.work.shared) fill_view(p, task, view);
  const PixelView at = band_pixels(p, task, view);
  const Regions regions = band_regions(p, task.band, at);
  Upcoming next;
  if (!p.in_place && number + p.threads < p.work.tasks()) {
    const BandTask then = p.work.task(number + p.threads);
    const Span rows = p.rows(then.band);
    const int64_t tiles = p.work.chunks.size * regions.tiles();
    if (p.work.shared)
      next.add(view_of(then).copy, positions_of(p, rows.count()) * p.cg, tiles);
    else if (s.groups == 1)
      next.add(p.image(then.n, 0), forward_window(s, rows), tiles);
  }
  const int64_t position = (task.n * s.oh + p.rows(task.band).first) * s.ow + p.columns(task.band).first;
  const Target to = {p.output + position * s.cout + task.group * p.filters.og, s.cout, s.ow * s.cout, 0, view.patch, 1, p.outputs};
  forward_plane(p, task, regions, at, to, *view.magnitude, next);
}

// Decides bands and chunks from the shape alone: the result must not depend on the number of threads.
void divide_forward(ForwardPlan &p) {
  const adderize_shape &s = p.s;
  BandWork &work = p.work;
  work.images = s.n;
  work.groups = s.groups;
  const int64_t images = s.n * s.groups, tiles = ceil_div(p.filters.og, tile_channels);
  if (p.flat) {
    work.bands = parts_of(s.ow, min(flat_positions, round_up(ceil_div(s.ow, 4), p.widest)));
    p.width = p.outputs = work.bands.size;
  } else {
    p.outputs = s.ow;
    p.width = p.in_place ? s.ow : reach(s.ow, s.stride_w, s.kw, s.dilation_w);
    // Few channels: shorter bands, down to four rows.
    work.bands = bands_of(s.oh, window_floats, min(ceil_div(wanted_tasks, images * tiles), ceil_div(s.oh, 4)),
                          [&](int64_t rows) { return view_floats(p, rows) + (p.in_place ? rows * s.ow * p.cg : 0); });
  }
  work.chunks = at_most(tiles, min(tiles, ceil_div(wanted_tasks, images * work.bands.count)));
  work.shared = work.chunks.count > 1;
  p.buffer_floats = view_floats(p, p.rows(0).count());
}

// A kernel that covers the whole image, or a 1x1 kernel of unit stride, sees every position as one row of `c` channels.
bool flatten_forward(adderize_shape &s) {
  const bool plain = s.padding_h == 0 && s.padding_w == 0;
  const bool point = plain && s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1;
  const bool whole = plain && s.groups == 1 && s.kh == s.h && s.kw == s.w && s.dilation_h == 1 && s.dilation_w == 1;
  if (!point && !whole) return false;
  const int64_t positions = s.n * s.oh * s.ow;
  s.c *= s.kh * s.kw;
  s.n = s.h = s.oh = s.kh = s.kw = s.stride_h = s.stride_w = 1;
  s.w = s.ow = positions;
  return true;
}

void forward_wide(const adderize_shape &shape, const float *input, const Filters &filters, float *output, int form, int threads) {
  ForwardPlan p = {};
  p.s = shape;
  p.input = input;
  p.output = output;
  p.form = form;
  p.filters = PackedFilters(shape, shape.padding_h || shape.padding_w);
  p.flat = flatten_forward(p.s);
  p.in_place = p.s.kh == 1 && p.s.kw == 1 && !shape.padding_h && !shape.padding_w;
  p.cg = p.s.c / p.s.groups;
  p.widest = sum_widest[p.filters.og > V];
  p.threads = threads;
  divide_forward(p);
  allocate([&](Arena &arena) {
    p.filters.take_from(arena);
    arena.take(p.buffers, p.work.buffers(threads) * p.buffer_floats);
  });
  pack_filters(p.filters, filters, threads);
  if (p.work.shared)
    parallel(p.work.copies(), threads, [&](int64_t number, int) { fill_view(p, p.work.copy(number), band_view(p, number)); });
  parallel(p.work.tasks(), threads, [&](int64_t number, int worker) { forward_task(p, number, worker); });
}

}}  // namespace adderize
