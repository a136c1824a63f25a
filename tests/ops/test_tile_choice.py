"""Which tile a kernel takes: the rule, timing on request, and the file that keeps the choices."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from adderize.ops.triton import choosing, tuned
from adderize.ops.triton.rule import Costs, Work, cycles, likeliest
from adderize.ops.triton.tiles import FORWARD, INPUT_GRADIENT, Tile, splits
from adderize.ops.triton.tuned import Machine

H100 = 132
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MACHINE = Machine("NVIDIA H100 80GB HBM3", "3.6.0", "0123456789ab")
LARGE = Tile(128, 64, 16, 8, 168)
TIMED = {"forward float32 200704x64x144x1": LARGE}


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ADDERIZE_CACHE", str(tmp_path))
    _forget()
    yield
    _forget()


def _forget() -> None:
    tuned.known.cache_clear()
    choosing._untimed.cache_clear()


# Forward pass of an H100 with this tile or the best of several: rows, columns, sums' length, T/s.
MEASURED = {
    "3x3, 64 channels": (64 * 56 * 56, 64, 576, 11.1),
    "3x3, 128 channels": (64 * 28 * 28, 128, 1152, 12.0),
    "3x3, 256 channels": (64 * 14 * 14, 256, 2304, 12.0),
    "3x3, 512 channels": (64 * 7 * 7, 512, 4608, 9.3),
    "1x1, 256 to 64 channels": (64 * 56 * 56, 64, 256, 9.7),
}


@pytest.mark.parametrize("layer", MEASURED)
def test_estimated_cycles_lie_near_measured_ones(layer: str) -> None:
    """Additions issue at 122 of 128 lanes; the clock was 1.755 GHz."""
    rows, columns, summed, measured = MEASURED[layer]
    seconds = cycles(LARGE, Work(rows, columns, summed // 4, 1), H100) / (1.755e9 * 122 / 128)
    assert rows * columns * summed / seconds / 1e12 == pytest.approx(measured, rel=0.1)


def _layers() -> Iterator[Work]:
    """Those of ResNet-18 and 50 and of CIFAR's networks at several batches, with splits."""
    for batch in (16, 64, 128, 256):
        for pixels, channels, filters, taps in (
            (56, 64, 64, 9), (28, 128, 128, 9), (14, 256, 256, 9), (7, 512, 512, 9),
            (56, 256, 64, 1), (56, 64, 256, 1), (14, 1024, 256, 1), (7, 512, 2048, 1),
            (32, 16, 16, 9), (16, 32, 32, 9), (8, 64, 64, 9),
        ):  # fmt: skip
            rows, steps = batch * pixels**2, taps * channels // 4
            parts = splits(-(-rows // 128) * -(-filters // 64), steps)
            yield Work(rows, filters, -(-steps // parts), parts)


@pytest.mark.parametrize("tiles", [FORWARD, INPUT_GRADIENT])
@pytest.mark.parametrize("multiprocessors", [46, 108, H100, 170])
@pytest.mark.parametrize(
    "costs", [Costs(block=2000), Costs(block=4500), Costs(element=0.0), Costs(element=0.6),
              Costs(lone_warp=0.0), Costs(lone_warp=0.3)],
)  # fmt: skip
def test_the_rule_stays_within_a_tenth_of_the_best_where_its_costs_are_off(
    tiles: tuple[Tile, ...], multiprocessors: int, costs: Costs
) -> None:
    """The costs were fitted to five layers of one device."""
    for work in _layers():
        chosen = likeliest(tiles, work, multiprocessors)
        best = min(cycles(tile, work, multiprocessors, costs) for tile in tiles)
        assert cycles(chosen, work, multiprocessors, costs) <= 1.1 * best, work


def test_cycles_by_hand() -> None:
    """Two blocks of four warps on the busiest multiprocessor: each scheduler has two warps."""
    work, costs = Work(rows=128 * 3, columns=64, steps=10, copies=1), Costs(0.0, 0.0, 0.0)
    assert cycles(LARGE, work, 2, costs) == 2 * 10 * (8 * 64 + 2 * 16 + 45)
    assert cycles(LARGE, work, 3, costs) == cycles(LARGE, work, 2, costs) / 2
    assert cycles(LARGE, work._replace(copies=4), 12, costs) == cycles(LARGE, work, 3, costs)


def test_narrow_matrices_take_narrow_tiles() -> None:
    assert likeliest(FORWARD, Work(262_144, 16, 36, 1), H100).columns == 16
    assert likeliest(FORWARD, Work(30, 4096, 100, 1), H100).rows == 32
    assert likeliest(FORWARD, Work(1, 1, 1, 1), H100) in FORWARD


def _choose(work: Work, device: torch.device = CPU, kernel: str = "forward") -> Tile:
    return choosing.choose_tile(print, FORWARD, work, device, (kernel, "float32"))


WORK = Work(200_704, 64, 144, 1)


def test_nothing_is_timed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "milliseconds", lambda *arguments: pytest.fail("timed"))
    assert _choose(WORK) == likeliest(FORWARD, WORK, H100)


def test_promising_tiles_are_timed_once_a_layer_and_the_fastest_serves() -> None:
    launched: list[Tile] = []

    def timer(launch: Any, tile: Tile) -> float:
        launched.append(tile)
        return -float(len(launched))

    promising = choosing.candidates(FORWARD, WORK, H100)
    assert 1 < len(promising) < len(FORWARD) and promising[0] == likeliest(FORWARD, WORK, H100)
    with choosing.timing(timer) as found:
        assert _choose(WORK) == _choose(WORK) == promising[-1] and launched == promising
        _choose(WORK, kernel="input gradient")
        _choose(WORK._replace(rows=1))
    assert found["forward float32 200704x64x144x1"] == promising[-1] and len(found) == 3
    assert _choose(WORK) == promising[0]


def test_timing_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), choosing.timing(lambda launch, tile: 1 // 0):
        _choose(WORK)
    assert _choose(WORK) == likeliest(FORWARD, WORK, H100)


@pytest.fixture
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "machine_of", lambda device: MACHINE)
    monkeypatch.setattr(choosing, "multiprocessors", lambda device: H100)


@pytest.mark.usefixtures("_a_gpu")
def test_kept_choices_serve_the_next_process() -> None:
    slow = FORWARD[4]
    assert choosing.kept(CUDA) == (tuned.file_of(MACHINE), 0)
    assert _choose(WORK, CUDA) != slow
    assert choosing.keep(CUDA, {"forward float32 200704x64x144x1": slow}) is not None
    assert choosing.kept(CUDA)[1] == 1
    assert _choose(WORK, CUDA) == slow
    assert _choose(WORK._replace(rows=64), CUDA) == likeliest(FORWARD, WORK._replace(rows=64), H100)
    strange = Tile(512, 512, 1, 32, None)
    choosing.keep(CUDA, {"forward float32 200704x64x144x1": strange})
    assert _choose(WORK, CUDA) == likeliest(FORWARD, WORK, H100)


@pytest.mark.usefixtures("_a_gpu")
def test_the_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = tuned._read
    monkeypatch.setattr(tuned, "_read", lambda file, m: reads.append(file) or read(file, m))
    tuned.keep(MACHINE, TIMED)
    reads.clear()
    for rows in range(1, 20):
        _choose(WORK._replace(rows=rows), CUDA)
    assert reads == [tuned.file_of(MACHINE)]


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "NVIDIA-H100-80GB-HBM3-triton-3.6.0-0123456789ab.json"
    assert tuned.file_of(MACHINE) == tmp_path / "tiles" / name
    monkeypatch.delenv("ADDERIZE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuned.cache_folder() == tmp_path / "xdg" / "adderize"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuned.cache_folder() == Path.home() / ".cache" / "adderize"
    others = (MACHINE._replace(device="A100"), MACHINE._replace(triton="3.7.0"),
              MACHINE._replace(kernels="f" * 12))  # fmt: skip
    assert len({tuned.file_of(machine) for machine in (MACHINE, *others)}) == 4


def test_choices_add_up() -> None:
    other = {"input gradient float32 1x1x1x1": Tile(64, 64, 8, 8)}
    tuned.keep(MACHINE, TIMED)
    tuned.keep(MACHINE, other)
    assert tuned.known(MACHINE) == {**TIMED, **other}
    left = {path.suffix for path in tuned.file_of(MACHINE).parent.iterdir()}
    assert left <= {".json", ".lock"}


BROKEN = {
    "cut": '{"device": "NVIDIA H1',
    "a list": "[]",
    "no tiles": '{"device": "NVIDIA H100 80GB HBM3"}',
    "another device": json.dumps({**MACHINE._asdict(), "device": "Abacus", "tiles": {}}),
    "other sizes": json.dumps({**MACHINE._asdict(), "tiles": {"forward": [128, 64]}}),
    "words": json.dumps({**MACHINE._asdict(), "tiles": {"forward": ["a"] * 5}}),
    "bytes": "\udcff",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_used_is_named_ignored_and_written_anew(text: str) -> None:
    file = tuned.file_of(MACHINE)
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=r"tiles in .*0123456789ab\.json is ignored: ") as caught:
        assert tuned.known(MACHINE) == tuned.known(MACHINE) == {}
    assert len(caught) == 1
    tuned.keep(MACHINE, TIMED)
    tuned.known.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.known(MACHINE) == TIMED


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiles").write_text("a file is in the way")
    with pytest.warns(UserWarning, match="cannot be written: .*ADDERIZE_CACHE"):
        assert tuned.keep(MACHINE, TIMED) is None
    with pytest.warns(UserWarning, match="is ignored"):
        assert tuned.known(MACHINE) == {}


def _keep_one(number: int) -> None:
    tuned.keep(MACHINE, {f"forward float32 {number}": LARGE})


def test_processes_that_write_at_once_lose_nothing() -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_keep_one, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert set(tuned.known(MACHINE)) == {f"forward float32 {number}" for number in range(8)}


def test_the_digest_follows_the_kernels() -> None:
    assert len(tuned.kernels_digest()) == 12
    files = {file.name for file in (Path(tuned.__file__).parent / "kernels").glob("*.py")}
    assert {"forward.py", "input_gradient.py"} <= files
