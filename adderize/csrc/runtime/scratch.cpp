#include "runtime/scratch.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace adderize {
namespace {

constexpr int64_t kept_bytes = int64_t(64) << 20;  // a larger block is given back when the next call needs less

struct Free {
  void operator()(void *p) const { std::free(p); }
};
thread_local std::unique_ptr<void, Free> block;
thread_local int64_t block_bytes = 0;

}  // namespace

void *scratch(int64_t bytes) {
  if (bytes > block_bytes || block_bytes > kept_bytes) {
    block.reset();
    block_bytes = 0;
    const int64_t pages = round_up(max(bytes, 1), 4096);
    block.reset(std::aligned_alloc(4096, size_t(pages)));
    if (!block) throw std::bad_alloc();
    block_bytes = bytes;
  }
#ifdef ADDERIZE_POISON_SCRATCH  // NaN: a test sees what is read before it is written
  std::memset(block.get(), 0xff, size_t(bytes));
#endif
  return block.get();
}

}  // namespace adderize
