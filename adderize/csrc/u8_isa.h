// The kernels on bytes of one instruction set. Each u8_*.cpp includes this once, under its own flags and without contraction.
#pragma once

#include "u8_depthwise.h"
#include "u8_forward.h"
#include "u8_images.h"

namespace adderize {

namespace {

int forward_u8(const adderize_shape &s, const uint8_t *input, const uint8_t *packed, int zero_point,
               const adderize_u8_epilogue &epilogue, int threads) {
  const bool depthwise = s.groups > 1 && s.c == s.groups;
  return (depthwise ? forward_u8_depthwise : forward_u8_blocks)(s, input, packed, zero_point, epilogue, threads);
}

}  // namespace

#define ADDERIZE_U8_KERNELS(name) extern const ByteKernels byte_kernels_##name = {forward_u8, to_bytes, max_pool_u8};

}  // namespace adderize
