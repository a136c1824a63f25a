// Tasks for the threads of the process's own OpenMP pool.
#pragma once

#include <stdint.h>

namespace adderize {

// Calls run(context, task, worker) once for every task, in any order, worker < threads.
void run_tasks(int64_t tasks, int threads, const void *context, void (*run)(const void *context, int64_t task, int worker));

namespace {

// The same for body(task, worker).
template <class Body>
void parallel(int64_t tasks, int threads, const Body &body) {
  run_tasks(tasks, threads, &body,
            [](const void *context, int64_t task, int worker) { (*static_cast<const Body *>(context))(task, worker); });
}

}  // namespace
}  // namespace adderize
