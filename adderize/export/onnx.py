"""Export to ONNX: ``torch.onnx.export`` has to be told how to write the package's ops.

torch.onnx.export(
    model, (example,), "model.onnx", dynamo=True,
    custom_translation_table=adderize.export.onnx.translation_table(),
)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adderize import ops  # noqa: F401  (defines torch.ops.adderize)
from adderize.errors import AdderizeError


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Translations of the package's ops for ``torch.onnx.export(..., dynamo=True)``.

    An adder layer becomes a loop over its K = Cin/groups * kh * kw taps, which takes one
    ``|x - F|`` at a time from the output: beside the padded input it holds three tensors of the
    output's size, whatever K is. A binary layer becomes a convolution of signs. Needs ONNX opset
    18 or later, no custom operator. float32; batch and image size may be dynamic.

    Returns:
        the ``custom_translation_table``.

    Raises:
        AdderizeError: onnxscript is not installed.
    """
    try:
        from adderize.export.onnx_translations import adder_conv2d, binary_conv2d
    except ImportError as error:
        raise AdderizeError(
            "exporting to ONNX needs onnxscript: install it with pip install 'adderize[onnx]'"
        ) from error
    return {
        torch.ops.adderize.adder_conv2d.default: adder_conv2d,
        torch.ops.adderize.binary_conv2d.default: binary_conv2d,
    }
