"""NAME.h, NAME.c, NAME_filters.h and NAME_filters.c."""

from __future__ import annotations

import math

from adderize.export.c.buffers import View
from adderize.export.c.network import Network
from adderize.export.c.placing import size
from adderize.export.c.text import (
    arrays,
    comment,
    declaration,
    definition,
    initialiser,
    number,
    wrapped,
)
from adderize.integer.program import BYTES_OF

_CALLS = {
    "adder_conv": "windows layer input other output patch",
    "adder_conv_4bit": "windows layer input other output patch",
    "adder_linear": "rows layer input other output",
    "adder_linear_4bit": "rows layer input other output",
    "shift_conv": "windows layer input other output patch",
    "shift_linear": "rows layer input other output patch",
    "sum_pool": "windows layer input other output",
    "max_pool_bytes": "windows input output",
    "max_pool_words": "windows input output",
    "rescale": "layer input other output",
    "clamp_bytes": "count low high input output",
    "clamp_words": "count low high input output",
    "move_values": "layer input output",
    "pick_bytes": "count places input output",
    "pick_words": "count places input output",
    "fill_bytes": "count value output",
    "fill_words": "count value output",
}  # fmt: skip


def header(network: Network, name: str) -> str:
    """NAME.h."""
    program = network.program
    channels, rows, columns = program.input_size
    output = program.slots[program.output]
    told = "the largest one names the class"
    if len(output.shape) > 1:
        told = f"{size(output.shape)} of them, the last dimension fastest"
    scale, zero = program.logit_scale, program.logit_zero
    place = "rows of pixels, the channels of a pixel side by side"
    about = comment(
        f"{name}: an integer adder network. It multiplies nothing, calls no library and needs "
        f"{network.arena.size} bytes of memory beside the stack, which it holds itself: one "
        "inference at a time."
    )
    layout = comment(
        f"image: raw bytes, {rows} x {columns} pixels of {channels} channels: {place}. logits: "
        f"{told}; in the float network's unit they are {scale!r} * (logit - {zero!r})."
    )
    guard = f"{name.upper()}_H"
    return f"""{about}
#ifndef {guard}
#define {guard}

#include <stdint.h>

#define {name}_input_rows {rows}
#define {name}_input_columns {columns}
#define {name}_input_channels {channels}
#define {name}_input_size {math.prod(program.input_size)}
#define {name}_output_size {output.numel}
#define {name}_arena_size {network.arena.size}

#ifdef __cplusplus
extern "C" {{
#endif

{layout}
void {name}_run(const uint8_t *image, int32_t *logits);
{_image_place(network, name, "declared")}
#ifdef __cplusplus
}}
#endif

#endif
"""


def _image_place(network: Network, name: str, form: str) -> str:
    """The function that says where an image may lie, if the arena has a place for it."""
    if network.image not in network.arena.offsets:
        return ""
    if form == "defined":
        place = _at(network.arena.offsets[network.image], "uint8").replace(
            "bytes", "(uint8_t *)arena"
        )
        return f"\nuint8_t *{name}_image(void) {{ return {place}; }}\n"
    about = comment(
        f"Where an image may be written before {name}_run reads it: in memory that the network has "
        "no other use for until then. It is overwritten."
    )
    return f"\n{about}\nuint8_t *{name}_image(void);\n"


def constants(network: Network, name: str) -> dict[str, str]:
    """NAME_filters.h and NAME_filters.c."""
    found = {
        key: values
        for step, layer in zip(network.steps, network.names, strict=True)
        for key, values in arrays(step.all_fields(), f"{name}_{layer}").items()
    }
    declared = "".join(f"extern {declaration(*item)};\n" for item in found.items())
    defined = "\n\n".join(definition(*item) for item in found.items())
    guard = f"{name.upper()}_FILTERS_H"
    about = comment(f"The constants of {name}: filters, factors and offsets, layer by layer.")
    return {
        f"{name}_filters.h": f"{about}\n#ifndef {guard}\n#define {guard}\n\n"
        f"#include <stdint.h>\n\n{declared}\n#endif\n",
        f"{name}_filters.c": f'#include "{name}_filters.h"\n\n{defined}\n',
    }


def source(network: Network, name: str) -> str:
    """NAME.c."""
    places = range(len(network.steps))
    structures = "".join(_structures(network, name, place) for place in places)
    calls = "\n".join(_call(network, name, place) for place in places)
    words = network.arena.size // 4
    arena = f"static int32_t arena[{words}];\n\n" if words else ""
    bytes_of = "  uint8_t *const bytes = (uint8_t *)arena;\n\n" if " bytes" in calls else ""
    about = comment(
        "One call a layer. Activations lie in one arena, those that are not needed at the same "
        "time in the same place. `bytes` is the arena seen as bytes."
    )
    return f"""#include "{name}.h"

#include <stddef.h>

#include "adderize_layers.h"
#include "{name}_filters.h"

{structures}{about}
{arena}void {name}_run(const uint8_t *image, int32_t *logits) {{
{bytes_of}{calls}}}
{_image_place(network, name, "defined")}"""


def _structures(network: Network, name: str, place: int) -> str:
    step, layer = network.steps[place], network.names[place]
    lines = []
    if step.windows is not None:
        fields = initialiser(step.windows, layer)
        lines.append(f"static const adderize_windows {layer}_windows = {fields};")
    if step.structure:
        fields = initialiser(step.all_fields(), f"{name}_{layer}")
        lines.append(f"static const adderize_{step.structure} {layer}_layer = {fields};")
    return "".join(f"{wrapped(line)}\n" for line in lines) + "\n" * bool(lines)


def _call(network: Network, name: str, place: int) -> str:
    step, layer = network.steps[place], network.names[place]
    known = {
        "windows": f"&{layer}_windows",
        "layer": f"&{layer}_layer",
        "places": f"{name}_{layer}_places",
        "input": _address(network, step.input),
        "output": _address(network, step.output),
        "other": "NULL" if step.other is None else _address(network, step.other),
        "patch": "NULL",
        **{key: number(value) for key, value in step.numbers.items()},
    }
    if step.patch:
        known["patch"] = _at(network.arena.patches[place], step.patch_dtype)
    arguments = ", ".join(known[key] for key in _CALLS[step.function].split())
    about = comment(f"{step.layer}: {step.text}")
    about = about.replace("\n", "\n  ")
    call = wrapped(f"adderize_{step.function}({arguments});", "  ")
    return f"  {about}\n{call}\n"


def _address(network: Network, view: View) -> str:
    if view.buffer in (network.image, network.logits):
        start = "image" if view.buffer == network.image else "logits"
        return f"{start} + {view.offset}" if view.offset else start
    offset = network.arena.offsets[view.buffer] + view.offset * BYTES_OF[view.dtype]
    return _at(offset, view.dtype)


def _at(offset: int, dtype: str) -> str:
    start, place = ("bytes", offset) if dtype == "uint8" else ("arena", offset // 4)
    return f"{start} + {place}" if place else start
