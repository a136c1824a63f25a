// The thread pool and the scratch memory. The only file that uses OpenMP: one pool, the one that the process already has.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels.h"

namespace adderize {
namespace {

constexpr int64_t kept_floats = int64_t(16) << 20;  // a larger block is given back when the next call needs less

struct Free {
  void operator()(float *p) const { std::free(p); }
};
thread_local std::unique_ptr<float, Free> block;
thread_local int64_t block_floats = 0;

}  // namespace

float *scratch(int64_t floats) {
  if (floats > block_floats || block_floats > kept_floats) {
    block.reset();
    block_floats = 0;
    const size_t bytes = (size_t(floats) * sizeof(float) + 4095) / 4096 * 4096;
    block.reset(static_cast<float *>(std::aligned_alloc(4096, bytes)));
    if (block) block_floats = floats;
  }
#ifdef ADDERIZE_POISON_SCRATCH  // NaN: a test sees what is read before it is written
  if (block) std::memset(block.get(), 0xff, size_t(floats) * sizeof(float));
#endif
  return block.get();
}

void parallel(int64_t tasks, int threads, const void *context, Task run) {
  if (threads > tasks) threads = int(tasks);
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) run(context, task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};
#pragma omp parallel num_threads(threads)
  {
    const int worker = workers.fetch_add(1, std::memory_order_relaxed);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(context, task, worker);
  }
}

}  // namespace adderize

extern "C" int adderize_has_openmp(void) {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}
