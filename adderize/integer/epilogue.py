"""What the modules of all instructions share, and the epilogue of sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.integer.fixed_point import checked, factors_of, is_checking
from adderize.integer.program import Instruction, Slot


class IntegerLayer(nn.Module):
    """One instruction: its settings are attributes, its tensors buffers, of the same names.

    Shape:
        as the instruction's slots, with a batch in front.
    """

    def __init__(self, instruction: Instruction, output: Slot) -> None:
        super().__init__()
        self.kind, self.shape = instruction.kind, output.shape
        self.dtype = torch.uint8 if output.dtype == "uint8" else torch.int32
        self._names = tuple(instruction.settings)
        for name, value in instruction.settings.items():
            setattr(self, name, value)
        for name, tensor in instruction.tensors.items():
            self.register_buffer(name, tensor)

    # Settings follow from the calibration: a state dict's are compared, not loaded.

    def get_extra_state(self) -> Tensor:
        values = [getattr(self, name) for name in self._names]
        numbers = [value if isinstance(value, tuple) else (value,) for value in values]
        integers = [n for group in numbers for n in group if isinstance(n, int)]
        return torch.tensor(integers, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise AdderizeError(
                f"the state dict is of another integer network: its {self.kind} has other settings "
                "here; save_model() and load_model() keep a network with its settings"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._names)


class WithEpilogue(IntegerLayer):
    shifts: Tensor
    signs: Tensor
    bias: Tensor
    other_shifts: Tensor
    other_signs: Tensor
    fraction: int
    low: int
    high: int

    def finished(self, sums: Tensor, other: Tensor | None, dim: int) -> Tensor:
        """The epilogue of sums whose channels are in dimension `dim`."""
        around = [1] * sums.dim()
        around[dim] = -1
        total = (self._by_shifts if is_checking() else self._by_factors)(sums, other, around)
        return (total >> self.fraction).clamp_(self.low, self.high).to(self.dtype)

    def _by_factors(self, sums: Tensor, other: Tensor | None, around: list[int]) -> Tensor:
        factor = factors_of(self.shifts, self.signs).to(torch.int32)
        total = sums.to(torch.int32) * factor.view(around)
        total += self.bias.view(around)
        if other is not None:
            factor = factors_of(self.other_shifts, self.other_signs).to(torch.int32)
            total += other.to(torch.int32) * factor
        return total

    def _by_shifts(self, sums: Tensor, other: Tensor | None, around: list[int]) -> Tensor:
        total = self.bias.long().view(around).expand_as(sums)
        for shift, sign in zip(self.shifts.long(), self.signs.long(), strict=True):
            total = checked(total + (sums.long() << shift.view(around)) * sign.view(around))
        if other is not None:
            for shift, sign in zip(self.other_shifts.long(), self.other_signs.long(), strict=True):
                total = checked(total + (other.long() << shift) * sign)
        return total
