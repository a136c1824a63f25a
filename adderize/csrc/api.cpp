#include "adderize.h"

int adderize_abi_version(void) { return ADDERIZE_ABI_VERSION; }
