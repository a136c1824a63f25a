// Which instruction set is used: the best one of the machine, or the one asked for.
#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"

namespace adderize {
namespace {

const Kernels *const compiled[] = {
#ifdef ADDERIZE_X86
    &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable};

bool runs_here(const Kernels &kernels) {
#ifdef ADDERIZE_X86  // __builtin_cpu_supports asks the operating system too (it must save the wide registers)
  if (&kernels == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw");
  if (&kernels == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &kernels == &kernels_portable;
}

const Kernels *best() {
  for (const Kernels *kernels : compiled)
    if (runs_here(*kernels)) return kernels;
  return &kernels_portable;
}

std::atomic<const Kernels *> chosen{nullptr};

}  // namespace

const Kernels &active() {
  const Kernels *kernels = chosen.load(std::memory_order_acquire);
  if (!kernels) chosen.store(kernels = best(), std::memory_order_release);
  return *kernels;
}

}  // namespace adderize

using namespace adderize;

extern "C" {

const char *adderize_active_cpu(void) { return active().name; }

const char *adderize_available_cpus(void) {
  static const std::string names = [] {
    std::string list;
    for (const Kernels *kernels : compiled)
      if (runs_here(*kernels)) list += (list.empty() ? "" : ",") + std::string(kernels->name);
    return list;
  }();
  return names.c_str();
}

int adderize_set_cpu(const char *name) {
  if (!name || !std::strcmp(name, "auto")) {
    chosen.store(best(), std::memory_order_release);
    return ADDERIZE_OK;
  }
  for (const Kernels *kernels : compiled)
    if (!std::strcmp(name, kernels->name)) {
      if (!runs_here(*kernels)) return ADDERIZE_UNSUPPORTED_CPU;
      chosen.store(kernels, std::memory_order_release);
      return ADDERIZE_OK;
    }
  return ADDERIZE_UNSUPPORTED_CPU;
}

}  // extern "C"
