// Which tile shapes exist, and how a plane of positions is cut into them.
#pragma once

#include "tile.h"

namespace adderize {
namespace {

using SumTile = void (*)(Grid, const Runs &, const float *filters, float *sums);
using ClipTile = bool (*)(Grid, const Runs &, const float *filters, const Tile &);

#if defined(ADDERIZE_FEW_TILES)  // sanitizers compile every shape for seconds
constexpr int sum_widest[2] = {4, 3}, clip_widest = 4;
#elif defined(ADDERIZE_AVX512)
constexpr int sum_widest[2] = {16, 13}, clip_widest = 14;  // positions in one row; sums of 1 and 2 vectors
#else
constexpr int sum_widest[2] = {12, 5}, clip_widest = 6;
#endif
constexpr int most_positions = 16, most_rows = 4;
constexpr int64_t flat_positions = 168;  // of a task where the image is one row, read in place

// Tiles of several rows, for narrow planes. A tile never holds more positions than the registers do.
constexpr bool exists(int q, int r, int widest) { return r == 1 ? q <= widest : q * r <= widest && q <= 7; }

template <Sum kind, int N, int Q, int R>
constexpr SumTile sum_entry() {
  if constexpr (exists(Q, R, sum_widest[N - 1]))
    return sum_tile<kind, Q, R, N>;
  else
    return nullptr;
}
template <Clip kind, int, int Q, int R>
constexpr ClipTile clip_entry() {
  if constexpr (exists(Q, R, clip_widest))
    return clip_tile<kind, Q, R>;
  else
    return nullptr;
}

#define ADDERIZE_ROW(entry, kind, N, R)                                                                                      \
  {                                                                                                                          \
    nullptr, entry<kind, N, 1, R>(), entry<kind, N, 2, R>(), entry<kind, N, 3, R>(), entry<kind, N, 4, R>(),                 \
        entry<kind, N, 5, R>(), entry<kind, N, 6, R>(), entry<kind, N, 7, R>(), entry<kind, N, 8, R>(),                      \
        entry<kind, N, 9, R>(), entry<kind, N, 10, R>(), entry<kind, N, 11, R>(), entry<kind, N, 12, R>(),                   \
        entry<kind, N, 13, R>(), entry<kind, N, 14, R>(), entry<kind, N, 15, R>(), entry<kind, N, 16, R>()                   \
  }
#define ADDERIZE_ROWS(entry, kind, N) \
  { ADDERIZE_ROW(entry, kind, N, 1), ADDERIZE_ROW(entry, kind, N, 2), ADDERIZE_ROW(entry, kind, N, 3), ADDERIZE_ROW(entry, kind, N, 4) }
#define ADDERIZE_TABLE(entry, kind) \
  { ADDERIZE_ROWS(entry, kind, 1), ADDERIZE_ROWS(entry, kind, 2) }

// [vectors - 1][rows - 1][positions in a row]
constexpr SumTile maxima_tiles[2][most_rows][most_positions + 1] = ADDERIZE_TABLE(sum_entry, Sum::maxima);
constexpr SumTile distance_tiles[2][most_rows][most_positions + 1] = ADDERIZE_TABLE(sum_entry, Sum::distances);
// [rows - 1][positions in a row]
constexpr ClipTile full_tiles[most_rows][most_positions + 1] = ADDERIZE_ROWS(clip_entry, Clip::full, 1);
constexpr ClipTile sign_tiles[most_rows][most_positions + 1] = ADDERIZE_ROWS(clip_entry, Clip::sign, 1);

// Positions 4 KiB apart share a set of the first-level cache, which has 8 ways or more: the filters need one.
constexpr int64_t set_floats = 1024, most_in_a_set = 7;
ADDERIZE_INLINE int widest_of(int widest, int64_t pixel) { return pixel % set_floats ? widest : int(least(widest, most_in_a_set)); }

// A plane of `width` columns is cut into `columns` strips of nearly equal width, and its rows taken `rows` at a time.
struct Cut {
  int64_t columns;
  int rows;
};

Cut cut(int64_t width, int64_t height, int widest) {
  Cut best = {ceil_div(width, widest), 1};
  int64_t best_steps = -1;
  for (int rows = 1; rows <= most_rows && rows <= most(height, 1); ++rows) {
    const int64_t q = rows == 1 ? widest : least(7, widest / rows);
    if (q < 1) break;
    const int64_t columns = ceil_div(width, q), positions = ceil_div(width, columns) * rows;
    // Small tiles wait for their own sums and load more for each term: about 3 positions' time is lost in each.
    const int64_t steps = columns * ceil_div(height, rows) * (positions + 5);
    if (best_steps < 0 || steps < best_steps) {
      best_steps = steps;
      best = {columns, rows};
    }
  }
  return best;
}

// Outputs are on their way from memory while their tile is computed, inputs while the one before is.
template <int N>
void prefetch(const float *out, int64_t pixel, int64_t row, int64_t q_count, int64_t r_count) {
  for (int64_t r = 0; r < r_count; ++r)
    for (int64_t q = 0; q < q_count; ++q)
      for (int n = 0; n < N; ++n) __builtin_prefetch(out + r * row + q * pixel + n * V, 1);
}

}  // namespace
}  // namespace adderize
