/* As stream_host.c, for RISC-V without a C library: system calls of Linux, which its emulator knows.
 * At the end, the most bytes of stack that an inference used go to the standard error, as an
 * int32_t. */
#include <stdint.h>

enum { STDIN, STDOUT, STDERR };
enum { READ = 63, WRITE = 64, EXIT = 93 };
enum { STACK_WORDS = 4096, FRAME = 16 };
#define UNTOUCHED INT32_C(0x5AA55AA5)

long system_call(long first, long second, long third, long number);
void run_on_stack(const uint8_t *image, int32_t *logits, int32_t *end);
void stream(void);

static int32_t stack[STACK_WORDS] __attribute__((aligned(16)));
static uint8_t image[INPUT_SIZE];
static int32_t logits[OUTPUT_SIZE];

/* 1 if all bytes went through, 0 at the end of the input. */
static int transfer(long file, uint8_t *data, long count, long number) {
  while (count != 0) {
    long done = system_call(file, (long)data, count, number);
    if (done <= 0) return 0;
    data += done;
    count -= done;
  }
  return 1;
}

static int32_t stack_used(void) {
  const int32_t *deepest = stack;
  while (*deepest == UNTOUCHED) ++deepest;
  return (int32_t)((const uint8_t *)(stack + STACK_WORDS) - (const uint8_t *)deepest) - FRAME;
}

void stream(void) {
  int32_t used, *word;
  for (word = stack; word != stack + STACK_WORDS; ++word) *word = UNTOUCHED;
  while (transfer(STDIN, image, sizeof image, READ)) {
    run_on_stack(image, logits, stack + STACK_WORDS);
    if (!transfer(STDOUT, (uint8_t *)logits, sizeof logits, WRITE)) break;
  }
  used = stack_used();
  transfer(STDERR, (uint8_t *)&used, sizeof used, WRITE);
  system_call(0, 0, 0, EXIT);
}
