/* Runs a network on every image of the standard input and writes the logits, as they lie in memory,
 * to the standard output. RUN, INPUT_SIZE and OUTPUT_SIZE are the network's. */
#include <stdint.h>
#include <stdio.h>

void RUN(const uint8_t *image, int32_t *logits);

int main(void) {
  static uint8_t image[INPUT_SIZE];
  static int32_t logits[OUTPUT_SIZE];
  while (fread(image, 1, sizeof image, stdin) == sizeof image) {
    RUN(image, logits);
    if (fwrite(logits, 1, sizeof logits, stdout) != sizeof logits) return 1;
  }
  return 0;
}
