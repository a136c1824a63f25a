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
LARGE = FORWARD[0]
TIMED = {"forward float32 200704x64x576x1x1": LARGE}


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ADDERIZE_CACHE", str(tmp_path))
    _forget()
    yield
    _forget()


def _forget() -> None:
    tuned.known.cache_clear()
    choosing._untimed.cache_clear()


# Milliseconds on an H100 (torch 2.11, Triton 3.6, float32) in each of the tiles.
MEASURED = {
    FORWARD: {
        Work(100_352, 128, 1152, 1): (1.312, 1.222, 1.319, 1.222, 1.446, 1.327, 1.386, 1.891),
        Work(6_272, 512, 4608, 1): (1.279, 1.193, 1.255, 1.560, 1.484, 1.279, 1.363, 1.748),
        Work(3_136, 512, 4608, 1): (0.924, 0.783, 0.906, 0.783, 0.756, 0.842, 0.733, 1.130),
        Work(401_408, 256, 64, 1): (0.688, 0.641, 0.694, 0.674, 0.752, 0.749, 0.751, 1.038),
        Work(25_088, 256, 1024, 1): (0.589, 0.565, 0.576, 0.720, 0.661, 0.611, 0.630, 0.876),
    },
    INPUT_GRADIENT: {
        Work(100_352, 128, 1152, 1, 2): (1.543, 1.461, 1.466, 1.563, 1.493, 1.861),
        Work(6_272, 512, 4608, 1, 2): (1.952, 1.855, 1.841, 1.517, 1.450, 1.710),
        Work(3_136, 512, 4608, 1, 2): (0.980, 0.921, 0.918, 0.758, 0.731, 1.138),
        Work(401_408, 64, 256, 1, 2): (0.753, 0.713, 0.749, 0.763, 0.721, 0.942),
        Work(25_088, 1024, 256, 1, 2): (0.754, 0.719, 0.746, 0.748, 0.725, 0.944),
    },
}
_CLOCK = 1.98e6  # cycles a millisecond


@pytest.mark.parametrize("tiles", MEASURED)
def test_the_chosen_tile_is_within_a_tenth_of_the_fastest_and_takes_what_was_estimated(
    tiles: tuple[Tile, ...],
) -> None:
    for work, milliseconds in MEASURED[tiles].items():
        chosen = likeliest(tiles, work, H100)
        found = milliseconds[tiles.index(chosen)]
        assert found <= 1.1 * min(milliseconds), work
        assert cycles(chosen, work, H100) / _CLOCK == pytest.approx(found, rel=0.15), work


def _layers() -> Iterator[Work]:
    """Those of ResNet-18 and 50 and of CIFAR's networks at several batches, with splits."""
    for batch in (16, 64, 128, 256):
        for pixels, channels, filters, taps in (
            (56, 64, 64, 9), (28, 128, 128, 9), (14, 256, 256, 9), (7, 512, 512, 9),
            (56, 256, 64, 1), (56, 64, 256, 1), (14, 1024, 256, 1), (7, 512, 2048, 1),
            (32, 16, 16, 9), (16, 32, 32, 9), (8, 64, 64, 9),
        ):  # fmt: skip
            rows, terms = batch * pixels**2, taps * channels
            parts = splits(-(-rows // 128) * -(-filters // 64), terms)
            yield Work(rows, filters, -(-terms // parts), parts)


@pytest.mark.parametrize("tiles", [FORWARD, INPUT_GRADIENT])
@pytest.mark.parametrize("multiprocessors", [46, 108, H100, 170])
@pytest.mark.parametrize(
    "costs", [Costs(element=0.2), Costs(element=0.5), Costs(narrow=0.5), Costs(narrow=1.2),
              Costs(few_warps=0.6), Costs(few_warps=1.4)],
)  # fmt: skip
def test_the_rule_stays_within_a_tenth_of_the_best_where_its_costs_are_off(
    tiles: tuple[Tile, ...], multiprocessors: int, costs: Costs
) -> None:
    """The costs were fitted to one device."""
    for work in _layers():
        chosen = likeliest(tiles, work, multiprocessors)
        best = min(cycles(tile, work, multiprocessors, costs) for tile in tiles)
        assert cycles(chosen, work, multiprocessors, costs) <= 1.1 * best, work


def test_cycles_by_hand() -> None:
    """Of 168 registers a thread, three blocks of four warps share a multiprocessor."""
    work, costs = Work(rows=128 * 3, columns=64, terms=40, copies=1), Costs(element=0.0)
    of_a_block = 40 * 128 * 64 / LARGE.rate
    assert cycles(LARGE, work, 1, costs) == pytest.approx(3 * of_a_block)
    # A block alone has one warp on each scheduler, where three can hide each other's waiting.
    alone = of_a_block * (3 / (3 + costs.few_warps)) * (1 + costs.few_warps)
    assert cycles(LARGE, work, 3, costs) == pytest.approx(alone)
    assert cycles(LARGE, work._replace(copies=4), 3, costs) == pytest.approx(3 * of_a_block + alone)


def test_what_is_read_and_written_counts() -> None:
    work, costs = Work(rows=128, columns=64, terms=0, copies=1), Costs(element=0.5, narrow=1.0)
    assert cycles(LARGE, work, 1, costs) == 0.5 * 128 * 64
    assert cycles(LARGE, work._replace(tensors=2), 1, costs) == 128 * 64
    # Four threads side by side write half a sector.
    narrow = Tile(128, 64, 32, 4, 168)
    assert cycles(narrow, work, 1, costs) == 128 * 64


def test_narrow_matrices_take_narrow_tiles() -> None:
    assert likeliest(FORWARD, Work(262_144, 16, 144, 1), H100).columns == 16
    assert likeliest(INPUT_GRADIENT, Work(262_144, 16, 144, 1, 2), H100).columns == 16
    assert likeliest(FORWARD, Work(1, 1, 1, 1), H100) in FORWARD


def _choose(work: Work, device: torch.device = CPU, kernel: str = "forward") -> Tile:
    return choosing.choose_tile(print, FORWARD, work, device, (kernel, "float32"))


WORK = Work(200_704, 64, 576, 1)


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
    assert found["forward float32 200704x64x576x1x1"] == promising[-1] and len(found) == 3
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
    assert choosing.keep(CUDA, {"forward float32 200704x64x576x1x1": slow}) is not None
    assert choosing.kept(CUDA)[1] == 1
    assert _choose(WORK, CUDA) == slow
    assert _choose(WORK._replace(rows=64), CUDA) == likeliest(FORWARD, WORK._replace(rows=64), H100)
    strange = Tile(512, 512, 1, 32, None)
    choosing.keep(CUDA, {"forward float32 200704x64x576x1x1": strange})
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


def test_a_user_without_a_home_has_a_folder_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in containers that run under a number: each layer looks for the file."""

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADDERIZE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(tuned.tempfile, "gettempdir", lambda: str(tmp_path))
    assert tuned.known(MACHINE) == {}
    tuned.keep(MACHINE, TIMED)
    assert tuned.cache_folder() == tmp_path / "adderize"
    assert tuned.file_of(MACHINE).is_file()


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
    "words": json.dumps({**MACHINE._asdict(), "tiles": {"forward": ["a"] * len(LARGE)}}),
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


def test_a_file_system_without_locks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(path: Path) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(tuned, "FileLock", lock)
    with pytest.warns(UserWarning, match="cannot be written: FileSystem .*ADDERIZE_CACHE"):
        assert tuned.keep(MACHINE, TIMED) is None


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
