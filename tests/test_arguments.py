"""Arguments that many functions take mean the same to all of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import nn

from adderize import adderize, count, load_authors_checkpoint
from adderize.data import read_parquet
from adderize.transfer import match

SIZE = (3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(*channels, 3, bias=False) for channels in ((3, 4), (4, 4)))
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 2))


def write_prices(place: Path) -> None:
    (place / "f").write_text(json.dumps({"unit": "joule", "additions": 1e-12}))


def write_weights(place: Path) -> None:
    state = adderize(network()).state_dict()
    torch.save({name.replace("1.weight", "1.adder"): w for name, w in state.items()}, place / "f")


def write_images(place: Path) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4)).save(encoded, "PNG")
    columns = {"image": [{"bytes": encoded.getvalue(), "path": None}], "label": [1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), place / "f")


def transfer(path: str) -> None:
    teacher = network()
    images = torch.rand(8, *SIZE, generator=torch.Generator().manual_seed(0))
    match(adderize(teacher, inplace=False), teacher, images, state=path)


@pytest.mark.parametrize(
    ("write", "call"),
    [
        (write_prices, lambda path: count(network(), SIZE, energy=path)),
        (write_weights, lambda path: load_authors_checkpoint(adderize(network()), path)),
        (write_images, read_parquet),
        (None, transfer),
    ],
    ids=["costs", "checkpoint", "parquet", "state"],
)
def test_a_tilde_is_the_users_own_folder(
    write: Callable[[Path], None] | None,
    call: Callable[[str], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    if write is not None:
        write(home)
    call("~/f")
    assert (home / "f").is_file()
    assert not (tmp_path / "~").exists()
