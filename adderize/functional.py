"""Adder and binary operations as functions; the layers hold their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from adderize.errors import AdderizeError
from adderize.ops.geometry import Geometry, resolve
from adderize.ops.transforms import call

__all__ = ["adder_conv2d", "adder_linear", "binary_conv2d"]

_Size = int | Sequence[int]


def adder_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
    *,
    gradient: str = "full",
) -> Tensor:
    """Negative L1 distance between every filter and every patch, plus a bias.

    ``Y[n,c,p] = -sum_k |x_p[k] - F_c[k]|`` (Chen et al., AdderNet, CVPR 2020, section 3). Padding
    takes part: a padded tap contributes ``-|F|``. The gradients are the paper's surrogates, so
    ``torch.autograd.gradcheck`` fails by design. Sums are accumulated in float32.

    Args:
        input: (N, Cin, H, W) or (Cin, H, W), float32 or float64; half precision under
            ``torch.autocast``. channels_last is the faster memory format.
        weight: filters, (Cout, Cin/groups, kh, kw), float32 or float64.
        bias: (Cout,), or None.
        stride, dilation: an integer or a pair.
        padding: an integer, a pair, ``"valid"`` or ``"same"`` (zeros; stride 1 only).
        groups: as in ``torch.nn.functional.conv2d``.
        gradient: ``"full"``: ``x - F`` for the filters and ``clip(F - x, -1, 1)`` for the input;
            ``"sign"``: their signs, the true derivatives and the paper's ablation;
            ``"sign_input"``: ``x - F`` for the filters, the sign for the input.

    Returns:
        (N, Cout, OH, OW), channels_last where input or weight is, or (Cout, OH, OW), contiguous;
        float32, or float64 for float64 inputs.

    Raises:
        AdderizeError: shapes, dtypes or arguments that do not fit each other.
    """
    if has_torch_function((input, weight, bias)):
        traced: Tensor = handle_torch_function(
            adder_conv2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            gradient=gradient,
        )
        return traced
    _check_tensors(input, weight, bias)
    if input.dim() == 3:
        batch = input.unsqueeze(0)
        output = adder_conv2d(
            batch, weight, bias, stride, padding, dilation, groups, gradient=gradient
        )
        return output.squeeze(0).contiguous()
    geometry, (bottom, right) = resolve(weight.shape[2:], stride, padding, dilation, groups)
    if bottom or right:
        input = F.pad(input, (0, right, 0, bottom))
    output = call("adder_conv2d", input, weight, *geometry, gradient)
    return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)


def adder_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, gradient: str = "full"
) -> Tensor:
    """Negative L1 distance between input rows and filters: the adder form of a linear layer.

    Args:
        input: (..., in_features), float32 or float64; half precision under ``torch.autocast``.
        weight: (out_features, in_features), float32 or float64.
        bias: (out_features,), or None.
        gradient: as in :func:`adder_conv2d`.

    Returns:
        (..., out_features), float32, or float64 for float64 inputs.

    Raises:
        AdderizeError: shapes, dtypes or arguments that do not fit each other.
    """
    if has_torch_function((input, weight, bias)):
        traced: Tensor = handle_torch_function(
            adder_linear, (input, weight, bias), input, weight, bias, gradient=gradient
        )
        return traced
    _check_tensors(input, weight, bias)
    fits = weight.dim() == 2 and input.dim() >= 1 and input.shape[-1] == weight.shape[1] > 0
    if not fits:
        raise AdderizeError(
            f"input has shape {tuple(input.shape)} and weight {tuple(weight.shape)}; expected "
            "(..., in_features) and (out_features, in_features)"
        )
    rows = input.reshape(-1, weight.shape[1], 1, 1)
    output = call("adder_conv2d", rows, weight[:, :, None, None], *Geometry(), gradient)
    output = output.reshape(*input.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias.to(output.dtype)


def binary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor:
    """XNOR-Net's convolution: signs of the input with signs of the filters, one scale a filter.

    ``Y = conv(sign(x), sign(F_c) * mean |F_c|)``, with sign(0) = 1 and sign(NaN) = NaN (Rastegari
    et al., XNOR-Net, ECCV 2016, equation 6). Padding comes after the signs: a padded tap
    contributes 0. The gradients are those of Zhou et al. (DoReFa-Net, 2016): straight through the
    input's sign where ``|x| <= 1`` and 0 elsewhere, straight through the filter's sign and scale.

    Args:
        input: (N, Cin, H, W) or (Cin, H, W), float32 or float64; half precision under
            ``torch.autocast``.
        weight: real-valued filters, (Cout, Cin/groups, kh, kw), float32 or float64.
        bias: (Cout,), or None.
        stride, padding, dilation, groups: as in :func:`adder_conv2d`.

    Returns:
        (N, Cout, OH, OW) or (Cout, OH, OW), in the input's dtype, or autocast's.

    Raises:
        AdderizeError: shapes, dtypes or arguments that do not fit each other.
    """
    if has_torch_function((input, weight, bias)):
        tensors = (input, weight, bias)
        traced: Tensor = handle_torch_function(
            binary_conv2d, tensors, *tensors, stride, padding, dilation, groups
        )
        return traced
    _check_tensors(input, weight, bias)
    if input.dim() == 3:
        batch = input.unsqueeze(0)
        output = binary_conv2d(batch, weight, bias, stride, padding, dilation, groups)
        return output.squeeze(0).contiguous()
    geometry, (top, left) = resolve(weight.shape[2:], stride, padding, dilation, groups)
    if top or left:
        # Rows and columns of zeros around the input would become ones: drop outputs instead.
        vertical, horizontal = geometry.padding
        geometry = geometry.padded(vertical + top, horizontal + left)
    output = call("binary_conv2d", input, weight, *geometry)
    if top or left:
        output = output[..., top:, left:]
    return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise AdderizeError for operands that no layer of ours takes, whatever their shapes."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            kind = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise AdderizeError(f"{name} is a {kind}; expected a dense torch.Tensor")
    if weight.dtype not in (torch.float32, torch.float64):
        raise AdderizeError(
            f"the filters have dtype {weight.dtype}; expected float32 or float64. Adder and binary "
            "layers need float32 filters: train with torch.autocast (Lightning: "
            'precision="bf16-mixed" or "16-mixed") instead of model.half(), '
            'model.bfloat16() or a "true" precision'
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise AdderizeError(
            f"bias has shape {tuple(bias.shape)} on {bias.device}; expected ({weight.shape[0]},) "
            f"on {weight.device} for {weight.shape[0]} filters"
        )
