"""The CNN in onnxruntime, float32 and int8, which is an optional dependency."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

CNN, CNN_INT8 = "cnn, onnxruntime", "cnn int8, onnxruntime"
_CALIBRATION_IMAGES = 16


def onnxruntime_missing() -> str | None:
    """Why onnxruntime cannot be measured; None where it can."""
    try:
        import onnxruntime.quantization  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install onnxruntime 'adderize[onnx]'"
    return None


def onnxruntime_calls(
    model: nn.Module, inputs: Tensor, images: Tensor
) -> dict[str, Callable[[], object]]:
    """Forward passes of a CNN in onnxruntime with torch's present number of threads.

    Args:
        model: in evaluation mode.
        inputs: what each call computes on.
        images: what the int8 form is calibrated on, 16 of them: static quantization (QDQ), weights
            per channel, activations unsigned.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, integers = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        x = inputs.contiguous()
        torch.onnx.export(model, (x,), str(plain), input_names=["x"], dynamo=True, verbose=False)
        batches = images[:_CALIBRATION_IMAGES].repeat(-(-len(x) // len(images)), 1, 1, 1)
        whole = len(batches) // len(x) * len(x)
        _quantize(plain, prepared, integers, batches[:whole].contiguous().split(len(x)))
        return {CNN: _session(plain, x), CNN_INT8: _session(integers, x)}


def _quantize(plain: Path, prepared: Path, integers: Path, batches: tuple[Tensor, ...]) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        batches: Iterator[Tensor]

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch.numpy()}

    reader = Reader()
    reader.batches = iter(batches)
    quant_pre_process(str(plain), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(integers),
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _session(file: Path, inputs: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {"x": inputs.numpy()}
    return lambda: session.run(None, feed)
