#define ADDERIZE_AVX2
#include "kernels_isa.h"

namespace adderize {
ADDERIZE_KERNELS(avx2)
}
