"""Parquet files of the Hugging Face schema: encoded images beside their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adderize.errors import AdderizeError


def parquet_files(folder: Path, *splits: str) -> list[Path]:
    """The files of the first of some splits that has any, in order: ``train.parquet``,
    ``data/train-00000-of-00002.parquet``."""
    places = (folder, folder / "data", folder / "plain_text")
    found = (sorted(place.glob(f"{split}*.parquet")) for split in splits for place in places)
    return next(filter(None, found), [])


def count_rows(path: Path | str) -> int:
    """
    Raises:
        AdderizeError: as :func:`read_rows`.
    """
    return int(_opened(path).metadata.num_rows)


def column_names(path: Path | str) -> list[str]:
    """
    Raises:
        AdderizeError: as :func:`read_rows`.
    """
    return list(_opened(path).schema_arrow.names)


def read_rows(
    path: Path | str, label: str | None = "label", at: Sequence[int] | None = None
) -> tuple[list[Any], list[int]]:
    """Encoded images, as rows {bytes, path}, and their labels.

    Args:
        path: a file with a column ``img`` or ``image`` of {bytes, path}, and a column of labels.
        label: the name of the label column; None for no labels.
        at: numbers of the rows to read; all by default.

    Raises:
        AdderizeError: the file is missing, is not parquet, or lacks a column.
    """
    import pyarrow

    file = _opened(path)
    found = file.schema_arrow.names
    image = next((name for name in ("img", "image") if name in found), None)
    if image is None or label not in (None, *found):
        expected = "img or image" if label is None else f"img or image, and {label}"
        raise AdderizeError(f"{path} has the columns {', '.join(found)}; expected {expected}")
    try:
        table = file.read(columns=[image] if label is None else [image, label])
        if at is not None:
            table = table.take(pyarrow.array(at, pyarrow.int64()))
        return table[image].to_pylist(), [] if label is None else table[label].to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _opened(path: Path | str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise AdderizeError("parquet files need pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> AdderizeError:
    return AdderizeError(f"cannot read {path} as a parquet file: {error}")
