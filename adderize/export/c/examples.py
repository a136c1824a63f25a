"""NAME_test.c, a program that compares, and NAME.mk, which builds and runs it."""

from __future__ import annotations

from torch import Tensor

from adderize.export.c.text import comment, definition
from adderize.export.c.tools import WARNINGS, as_pixels


def test_program(name: str, images: Tensor, logits: Tensor) -> str:
    """NAME_test.c.

    Args:
        images: uint8 (N, C, H, W).
        logits: int32 (N, outputs), those of the integer network.
    """
    pixels = definition("images", as_pixels(images).numpy())
    expected = definition("expected", logits.numpy())
    about = comment(
        f"Runs {name} on {len(images)} examples and compares the logits with those of the network "
        "in PyTorch. Ends with 0 if all are equal, else with 1."
    )
    return f"""{about}
#include <stdio.h>

#include "{name}.h"

static {pixels}

static {expected}

static int largest(const int32_t *logits) {{
  int place, best = 0;
  for (place = 1; place < {name}_output_size; ++place)
    if (logits[place] > logits[best]) best = place;
  return best;
}}

int main(void) {{
  static int32_t logits[{name}_output_size];
  const uint8_t *image = images;
  const int32_t *wanted = expected;
  int example, place, wrong = 0;
  for (example = 0; example < {len(images)}; ++example) {{
    int differ = 0;
    {name}_run(image, logits);
    for (place = 0; place < {name}_output_size; ++place) differ += logits[place] != wanted[place];
    printf("example %d: class %d, %s\\n", example, largest(logits),
           differ ? "logits DIFFER" : "logits as expected");
    wrong += differ != 0;
    image += {name}_input_size;
    wanted += {name}_output_size;
  }}
  printf("%d of {len(images)} examples as expected\\n", {len(images)} - wrong);
  return wrong != 0;
}}
"""


def makefile(name: str) -> str:
    """NAME.mk."""
    sources = f"{name}.c {name}_filters.c {name}_test.c adderize_layers.c"
    headers = f"{name}.h {name}_filters.h adderize_layers.h"
    return f"""# make -f {name}.mk: builds the examples of {name} and runs them.
CC ?= cc
CFLAGS ?= {" ".join(WARNINGS)} -O2

.PHONY: check
check: {name}_test
\t./{name}_test

{name}_test: {sources} {headers}
\t$(CC) $(CFLAGS) {sources} -o $@
"""
