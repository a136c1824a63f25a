// The kernels on bytes of one instruction set: compiled once for each, under its own flags and names, without contraction.
#include "u8/forward.h"
#include "u8/max_pool.h"
#include "u8/narrow_groups.h"
#include "u8/to_bytes.h"

namespace adderize {
namespace {

void forward_u8(const adderize_shape &s, const uint8_t *input, const uint8_t *packed, int zero_point, const ByteEpilogue &epilogue,
                int threads) {
  const ByteLayer layer = {s, input, packed, uint8_t(zero_point), epilogue};
  (in_lanes(s) ? forward_u8_narrow : forward_u8_blocks)(layer, threads);
}

}  // namespace

extern const ByteKernels ADDERIZE_BYTE_KERNELS = {forward_u8, to_bytes, max_pool_u8};

}  // namespace adderize
