#include "u8_isa.h"

namespace adderize {
ADDERIZE_U8_KERNELS(portable)
}
