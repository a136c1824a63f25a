"""A transfer that was stopped goes on with the result of an uninterrupted one."""

from __future__ import annotations

import copy
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdderizeError, adderize
from adderize.transfer import match, reconstruct
from adderize.transfer.features import Bench
from tests.transfer.networks import KINDS, images, plain, teacher


def _stopped_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in the middle of the features of one pair."""
    features = Bench.features
    calls = iter(range(1000))

    def stopping(bench: Bench, pair: Any, part: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return features(bench, pair, part)

    monkeypatch.setattr(Bench, "features", stopping)


@pytest.mark.parametrize("kind", ["plain", "residual", "inserted norms"])
def test_a_stopped_transfer_goes_on_with_the_same_result(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teacher(KINDS[kind])
    start = adderize(original, inplace=False)
    whole, stopped, resumed = (copy.deepcopy(start) for _ in range(3))
    options: dict[str, Any] = {"steps": 8, "batch_size": 8, "progress": False}
    expected = reconstruct(whole, original, images(), **options)
    state = tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        # The size of a pair's features is measured first: two calls a pair.
        _stopped_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(stopped, original, images(), state=state, **options)
    assert state.is_file()
    calls: list[str] = []
    features = Bench.features

    def watched(bench: Bench, pair: Any, part: Any) -> Any:
        calls.append(pair.name)
        return features(bench, pair, part)

    monkeypatch.setattr(Bench, "features", watched)
    report = reconstruct(resumed, original, images(), state=state, **options)
    assert expected.layers[0].name not in calls and expected.layers[1].name in calls
    assert report == expected
    for key, tensor in whole.state_dict().items():
        assert tensor.equal(resumed.state_dict()[key]), key
    again = copy.deepcopy(start)
    calls.clear()
    assert reconstruct(again, original, images(), state=state, **options) == expected
    assert not calls
    assert all(t.equal(again.state_dict()[key]) for key, t in whole.state_dict().items())


def test_nothing_unfinished_is_left_behind(tmp_path: Path) -> None:
    original = teacher(plain)
    match(adderize(original, inplace=False), original, images(), state=tmp_path / "s.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["s.pt"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("images", {"batches": images(seed=9)}),
        ("steps", {"steps": 3}),
        ("seed", {"seed": 5}),
        ("model", {"model": lambda: adderize(teacher(plain), init="keep")}),
        ("teacher", {"teacher": lambda: teacher(plain, seed=4)}),
        ("method", {"match": True}),
    ],
)
def test_the_state_of_another_transfer_is_refused(
    what: str, change: dict[str, Any], tmp_path: Path
) -> None:
    state = tmp_path / "state.pt"
    original = teacher(plain)
    reconstruct(adderize(original, inplace=False), original, images(), steps=2, state=state)
    model: nn.Module = change.get("model", lambda: adderize(original, inplace=False))()
    before = copy.deepcopy(model.state_dict())
    other: nn.Module = change.get("teacher", lambda: original)()
    batches = change.get("batches", images())
    with pytest.raises(AdderizeError, match=rf"{state.name} .*other .*{what}"):
        if "match" in change:
            match(model, other, batches, state=state)
        else:
            options = {"steps": 2, **{k: v for k, v in change.items() if k in ("steps", "seed")}}
            reconstruct(model, other, batches, state=state, **options)
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "tensor"])
def test_a_damaged_state_is_refused(content: bytes | str, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    if isinstance(content, str):
        torch.save(torch.zeros(3), state)
    else:
        state.write_bytes(content)
    original = teacher(plain)
    with pytest.raises(AdderizeError, match=r"state\.pt cannot be read"):
        match(adderize(original, inplace=False), original, images(), state=state)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    original = teacher(plain)
    with pytest.raises(AdderizeError, match=r"cannot write to .*state\.pt: No space left"):
        match(
            adderize(original, inplace=False), original, images(),
            state=tmp_path / "state.pt", progress=False,
        )  # fmt: skip
    assert not [*tmp_path.iterdir()]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    original = teacher(plain)
    with pytest.raises(AdderizeError, match="nowhere does not exist"):
        match(
            adderize(original, inplace=False), original, images(),
            state=tmp_path / "nowhere" / "s.pt",
        )  # fmt: skip
