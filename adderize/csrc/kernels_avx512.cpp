#define ADDERIZE_AVX512
#include "kernels_isa.h"

namespace adderize {
ADDERIZE_KERNELS(avx512)
}
