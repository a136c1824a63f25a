"""Images in parquet files of the Hugging Face schema."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adderize.data.image_sets import ImageSet, stacked
from adderize.errors import AdderizeError


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in order: ``train.parquet``, ``data/train-00000-of-00002.parquet``."""
    places = (folder, folder / "data", folder / "plain_text")
    return next(filter(None, (sorted(p.glob(f"{split}*.parquet")) for p in places)), [])


def read_rows(path: Path | str, label: str = "label") -> tuple[list[dict[str, Any]], list[int]]:
    """Encoded images, as rows {bytes, path}, and their labels.

    Args:
        path: a file with a column ``img`` or ``image`` of {bytes, path}, and a column of labels.
        label: the name of the label column.

    Raises:
        AdderizeError: the file is missing, is not parquet, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise AdderizeError(f"cannot read {path} as a parquet file: {error}") from error
    column = next((name for name in ("img", "image") if name in table.column_names), None)
    if column is None or label not in table.column_names:
        raise AdderizeError(
            f"{path} has the columns {', '.join(table.column_names)}; expected img or image, "
            f"and {label}"
        )
    return table[column].to_pylist(), table[label].to_pylist()


def read_parquet(path: Path | str, limit: int | None = None, *, label: str = "label") -> ImageSet:
    """Images of one size from a parquet file of the Hugging Face schema.

    Args:
        path: as for :func:`read_rows`.
        limit: only the first images.
        label: the name of the label column.

    Raises:
        AdderizeError: as :func:`read_rows`; an image is corrupt or of another size.
    """
    rows, labels = read_rows(path, label)
    images = [_decoded(row, f"image {index} of {path}") for index, row in enumerate(rows[:limit])]
    return ImageSet(stacked(images, str(path)), torch.tensor(labels[:limit], dtype=torch.int64))


def _decoded(row: dict[str, bytes], where: str) -> Tensor:
    from PIL import Image

    try:
        pixels = np.array(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
    except (OSError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise AdderizeError(f"{where} cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
