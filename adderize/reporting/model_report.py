"""A report that can be shown and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adderize.arguments import own_path
from adderize.reporting.contents import Contents
from adderize.reporting.page import page
from adderize.whole_files import write_whole


@dataclass(frozen=True)
class ModelReport(Contents):
    """What there is to know about a network, and the page that shows it.

    Attributes:
        plan, budget, inspection, quantization: what :func:`adderize.plan`, :func:`adderize.count`,
            ``inspect`` and ``quantize_report`` give; None for what there is not.
        absent: why a part is None: ``plan``, ``layers`` or ``quantization``, and the reason.
    """

    def to_html(self) -> str:
        """One page that needs nothing else, for screens, phones and paper.

        Raises:
            AdderizeError: jinja2 or matplotlib is not installed.
        """
        return page(self)

    def save(self, path: str | Path) -> None:
        """Write the page.

        Raises:
            AdderizeError: as :meth:`to_html`; a path that cannot be written.
        """
        write_whole(own_path(path), self.to_html())
