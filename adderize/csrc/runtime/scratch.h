// The working memory of a call: one block, handed out in pieces.
#pragma once

#include "runtime/integers.h"

namespace adderize {

// A block of the calling thread, valid until its next call. Throws std::bad_alloc.
void *scratch(int64_t bytes);

namespace {

// Hands out 64-byte aligned pieces of a block or, without one, only measures them.
class Arena {
 public:
  explicit Arena(void *memory) : block(static_cast<char *>(memory)) {}

  template <class T>
  void take(T *&piece, int64_t count) {
    if (block) piece = reinterpret_cast<T *>(block + used);
    used += round_up(count * int64_t(sizeof(T)), 64);
  }
  int64_t bytes() const { return used; }

 private:
  char *block;
  int64_t used = 0;
};

// pieces(arena) takes what a call needs: it runs once to measure, and again with the memory.
template <class Pieces>
void allocate(Pieces pieces) {
  Arena measured(nullptr);
  pieces(measured);
  Arena arena(scratch(measured.bytes()));
  pieces(arena);
}

}  // namespace
}  // namespace adderize
