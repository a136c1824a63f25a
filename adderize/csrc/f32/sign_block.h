// The inner loop of filter gradients: sums of g * sgn(x - F), or of g * x, over some outputs, for filter elements in registers.
#pragma once

#include "simd/simd.h"

namespace adderize { namespace {

constexpr int most_sign_elements = few_tiles ? 3 : sign_registers;

// Lanes that quick_sign takes.
ADDERIZE_INLINE ivec suits_quick_sign(vec v) {
  const vec magnitude = absolute(v);
  return (magnitude == vec{}) | ((magnitude >= all(quick_signs.least)) & (magnitude < all(quick_signs.most)));
}
ADDERIZE_INLINE bool every_lane(ivec lanes) {
  int32_t every = -1;
  for (int i = 0; i < V; ++i) every &= lanes[i];
  return every;
}

// Scales x for quick_sign; false where it does not take all.
bool scale_for_quick_sign(float *x, int64_t count) {
  ivec suited = ivec{} - 1;
  for (int64_t i = 0; i < count; i += V) {
    const int64_t lanes = min(V, count - i);
    const vec v = load(x + i, lanes);
    suited &= suits_quick_sign(v);
    if (quick_signs.scale != 1) store(x + i, v * quick_signs.scale, lanes);
  }
  return every_lane(suited);
}

// Outputs, and where an element sees x at them: image * i + row * y + pixel * column, in floats.
struct SeenPositions {
  int64_t images, rows, columns, image, row, pixel;

  int64_t count() const { return images * rows * columns; }
  // Rows and images that follow on each other as their columns do become one row.
  SeenPositions joined() const {
    SeenPositions p = *this;
    if (p.rows == 1 || p.row == p.columns * p.pixel) {
      p.columns *= p.rows;
      p.rows = 1;
      if (p.image == p.columns * p.pixel) {
        p.columns *= p.images;
        p.images = 1;
      }
    }
    return p;
  }
};

// g * sgn(x - F) of any numbers, or of what quick_sign takes, x scaled for it already; g * x.
enum class Term { sign, quick_sign, product };

// sums[i][lane] += the sum of the terms of g[position][lane], x and filters[i][lane] over the positions. Element i sees x[i], the
// same in all lanes or, depthwise, the vector at x + i * step. Products have no filters.
template <Term term, bool depthwise, int B>
__attribute__((noinline)) void sum_terms(const SeenPositions &at, const float *g, const float *x, int64_t step,
                                         const float *filters, double *sums) {
  constexpr bool quick = term == Term::quick_sign;
  const vec one = hidden_one();
  vec filter[B], acc[B];
  each<B>(ADDERIZE_EACH(i) {
    filter[i.value] = term == Term::product ? vec{} : load(filters + i.value * V) * (quick ? quick_signs.scale : 1);
    acc[i.value] = vec{};
  });
  for (int64_t image = 0; image < at.images; ++image)
    for (int64_t row = 0; row < at.rows; ++row) {
      const float *seen = x + image * at.image + row * at.row;
      for (int64_t column = 0; column < at.columns; ++column, seen += at.pixel, g += V) {
        const vec weight = load(g);
        each<B>(ADDERIZE_EACH(i) {
          const vec value = depthwise ? load(seen + i.value * step) : broadcast(seen + i.value);
          if constexpr (term == Term::product)
            acc[i.value] = fma(weight, value, acc[i.value]);
          else {
            const vec d = quick ? sign_difference<i.value>(value, filter[i.value], one) : value - filter[i.value];
            acc[i.value] = fma(weight, quick ? quick_sign(d, one) : sign(d), acc[i.value]);
          }
        });
      }
    }
  alignas(64) float part[B * V];
  each<B>(ADDERIZE_EACH(i) { store(part + i.value * V, acc[i.value]); });
  constexpr double unit = quick ? 1 / quick_signs.unit : 1;
  for (int i = 0; i < B * V; ++i) sums[i] += unit * part[i];
}

using SumTerms = void (*)(const SeenPositions &, const float *g, const float *x, int64_t step, const float *filters, double *sums);

// [elements - 1]
template <Term term, bool depthwise>
constexpr auto sums_of_terms =
    table<SumTerms, most_sign_elements>([](auto i) -> SumTerms { return sum_terms<term, depthwise, i.value + 1>; });

}}  // namespace adderize
