#include "kernels_isa.h"

namespace adderize {
ADDERIZE_KERNELS(portable)
}
