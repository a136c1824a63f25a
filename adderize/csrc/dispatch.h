#pragma once

#include "kernels.h"

namespace adderize {

const Kernels &active();

}  // namespace adderize
