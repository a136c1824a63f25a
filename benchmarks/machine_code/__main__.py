"""python -m benchmarks.machine_code [--sm 80 90 100] [--tiles first|all]: a table in Markdown.

Instructions of the inner loop a pair, registers of a thread, spilling instructions, bytes of shared
memory, and how many turns the worst load from shared memory takes ("1": no bank conflicts).
"""

from __future__ import annotations

import argparse

from benchmarks.machine_code.forms import DEVICES, FORMS

_HEADER = (
    "| kernel | device | tile | threads | instructions a pair | registers | spills "
    "| shared bytes | turns of a load |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.machine_code")
    parser.add_argument("--sm", type=int, nargs="+", default=list(DEVICES), help="default: all")
    parser.add_argument("--tiles", choices=("first", "all"), default="first", help="of each form")
    arguments = parser.parse_args()
    print(_HEADER)
    print("|---|---|---|" + "--:|" * 6)
    for name, form in FORMS.items():
        for sm in arguments.sm:
            for tile in form.tiles if arguments.tiles == "all" else form.tiles[:1]:
                code = form.compile(tile, sm)
                turns = str(code.ways) if code.lanes else f"{code.ways}, lanes on registers"
                cells = (
                    name,
                    f"sm_{sm}",
                    f"{tile.rows}x{tile.columns}",
                    tile.row_threads * tile.column_threads,
                    f"{code.per_pair:.2f}",
                    code.registers,
                    code.spills,
                    code.shared_bytes,
                    turns,
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
