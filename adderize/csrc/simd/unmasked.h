// What instruction sets without masks share.
#pragma once

#include "simd/vec.h"

namespace adderize { namespace {

ADDERIZE_INLINE void store(float *p, vec v, int64_t count) {
  if (count == V)
    store(p, v);
  else
    memcpy(p, &v, size_t(count) * sizeof(float));
}
ADDERIZE_INLINE vec absolute(vec a) { return (vec)((ivec)a & 0x7fffffff); }
ADDERIZE_INLINE vec sign(vec d) { return (vec)(((ivec)all(1.0f) & (ivec)(d > vec{})) | ((ivec)all(-1.0f) & (ivec)(d < vec{}))); }
ADDERIZE_INLINE float total(vec v) {
  float sum = 0;
  for (int i = 0; i < V; ++i) sum += v[i];
  return sum;
}
ADDERIZE_INLINE float lowest(vec v) {
  float low = v[0];
  for (int i = 1; i < V; ++i) low = v[i] < low ? v[i] : low;
  return low;
}

}}  // namespace adderize
