"""Export to ONNX: ``torch.onnx.export``, told how to write the package's ops."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from adderize import ops  # noqa: F401  (defines torch.ops.adderize)
from adderize.arguments import check_module, own_path
from adderize.errors import AdderizeError
from adderize.evaluation import evaluation
from adderize.integer import IntegerNetwork
from adderize.layers import Converted
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.fake_layers import check_no_fakes
from adderize.whole_files import replaced_files


def export_onnx(
    model: nn.Module, example: Any, path: str | os.PathLike[str], **options: Any
) -> Any:
    """Write a model with adder or binary layers as an ONNX file, in evaluation mode.

    The file needs no custom operator, and ONNX opset 18 or later: an adder layer is a loop over
    its K = Cin/groups * kh * kw taps, which takes one ``|x - F|`` at a time from the output (beside
    the padded input it holds three tensors of the output's size, whatever K is), a binary layer a
    convolution of signs. With torch 2.6, pooling needs a protobuf before 7.

    Args:
        model: with float32 filters.
        example: an input, or a tuple of the arguments of the model's forward.
        path: the file to write. The weights lie beside it in ``<path>.data``, without which it does
            not load, or inside with ``external_data=False``.
        options: of ``torch.onnx.export``: ``dynamic_shapes`` for other batches and image sizes, as
            ``({0: torch.export.Dim("batch")},)`` with an example of two images, ``input_names``,
            ``output_names``, ``opset_version``, translations of other ops ...

    Returns:
        the ``torch.onnx.ONNXProgram`` that was written.

    Raises:
        AdderizeError: onnxscript is not installed, or the model has layers that have no ONNX form
            (integers, rounding in training, filters that are not float32, average pooling with
            divisor_override and ceil_mode), or torch fixed the sizes that ``dynamic_shapes`` names;
            a path that cannot be written to.
    """
    _check(model)
    table = translation_table() | options.pop("custom_translation_table", {})
    arguments = example if isinstance(example, tuple) else (example,)
    settings = {"dynamo": True, "verbose": False} | options
    file = own_path(path)
    # Large weights lie in a file of their own beside it.
    with evaluation(model), replaced_files(file.parent, file.name) as unfinished:
        try:
            program = torch.onnx.export(
                model, arguments, unfinished / file.name, custom_translation_table=table, **settings
            )
        except Exception as error:
            _raise_own(error)
            raise
    _check_dynamic(program, settings.get("dynamic_shapes"), path)
    return program


def translation_table() -> dict[Any, Callable[..., Any]]:
    """What :func:`export_onnx` tells ``torch.onnx.export``, for those who call that themselves.

    Returns:
        the ``custom_translation_table`` of ``torch.onnx.export(..., dynamo=True)``.

    Raises:
        AdderizeError: onnxscript is not installed.
    """
    try:
        from adderize.export import onnx_translations as translations
    except ImportError as error:
        raise AdderizeError(
            "exporting to ONNX needs onnxscript: install it with pip install 'adderize[onnx]'"
        ) from error
    return {
        torch.ops.adderize.adder_conv2d.default: translations.adder_conv2d,
        torch.ops.adderize.binary_conv2d.default: translations.binary_conv2d,
        torch.ops.aten.avg_pool2d.default: translations.avg_pool2d,
        torch.ops.aten.avg_pool3d.default: translations.avg_pool3d,
    }


def _raise_own(error: BaseException) -> None:
    """Raise the error of a translation, of which torch's only tells among pages of other text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AdderizeError):
            raise AdderizeError(str(cause)) from error
        cause = cause.__cause__


def _check_dynamic(program: Any, shapes: Any, path: str | os.PathLike[str]) -> None:
    """Raise where sizes were to vary and all are fixed, as torch 2.6 does where they have names."""
    wanted = [size for size in pytree.tree_leaves(shapes) if size is not None]
    if not wanted or program is None:
        return
    sizes = [size for input in program.model.graph.inputs for size in input.shape or ()]
    if all(isinstance(size, int) for size in sizes):
        raise AdderizeError(
            f"{path} was written for inputs of {sizes} alone, though dynamic_shapes asked for "
            "others: pass torch.export.Dim.AUTO for the sizes that vary, or use a newer torch"
        )


def _check(model: nn.Module) -> None:
    check_module(model)
    if isinstance(model, IntegerNetwork):
        raise AdderizeError(
            "an integer network has no ONNX form: export the float network that it was made of"
        )
    check_no_fakes(
        model,
        "rounding has no ONNX form: load its weights into the float network that it was made of, "
        "and export that",
    )
    for name, layer in model.named_modules():
        if isinstance(layer, QuantAdder):
            raise AdderizeError(
                f"{name or 'the model'} is an 8-bit layer, which has no ONNX form: export the "
                "float network that it was made of"
            )
        if isinstance(layer, Converted) and layer.weight.dtype != torch.float32:
            raise AdderizeError(
                f"{name or 'the model'} has filters of {layer.weight.dtype}; expected "
                "torch.float32: call model.float() before"
            )
