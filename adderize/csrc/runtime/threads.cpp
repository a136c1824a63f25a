// The only file that uses OpenMP: one pool, the one that the process already has.
#include "runtime/threads.h"

#include <atomic>

#include "adderize.h"

namespace adderize {

void run_tasks(int64_t tasks, int threads, const void *context, void (*run)(const void *, int64_t, int)) {
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
