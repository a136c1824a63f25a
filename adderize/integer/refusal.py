"""What has no form without a multiplication, or in integers."""

from torch import nn

from adderize.quantize.calls import is_plain


class RefusedError(Exception):
    """An operation without such a form; the message says why."""


def check_plain(module: nn.Module) -> None:
    """Raise where a module does something else than its class: another form would not."""
    if not is_plain(module):
        raise RefusedError("it has forward hooks or a forward of its own, which would be lost")
