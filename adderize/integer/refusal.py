"""What has no form without a multiplication, or in integers."""

from torch import nn

from adderize.ops.geometry import as_pair
from adderize.quantize.calls import is_plain


class RefusedError(Exception):
    """An operation without such a form; the message says why."""


def check_plain(module: nn.Module | None) -> None:
    """Raise where a module does something else than its class: another form would not."""
    if not is_plain(module):
        raise RefusedError("it has forward hooks or a forward of its own, which would be lost")


def check_windows(pool: nn.AvgPool2d) -> None:
    """Raise where an average pooling does not divide by one size of its windows."""
    pads = any(as_pair(pool.padding, "padding"))
    if pool.ceil_mode or (pads and not pool.count_include_pad):
        raise RefusedError(
            "the window's size differs from place to place, and each size needs its own scale"
        )
    if pool.divisor_override:
        raise RefusedError("it has a divisor of its own")
