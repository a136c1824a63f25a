"""The paper's figures: their numbers against formulas, and the command on tiny runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from adderize import save_model
from adderize.data import load_mnist
from adderize.models import lenet5_bn
from recipes import mnist
from recipes.figures import __main__ as command
from recipes.figures import (
    curves,
    filter_slopes,
    filters,
    gradients,
    lenet_features,
    style,
    weights,
)
from recipes.figures.runs import ABLATION, best_match, comparable, find_runs, network


def write_run(folder: Path, top1: float = 99.0, **arguments: Any) -> None:
    folder.mkdir(parents=True)
    save_model(nn.Linear(1, 1), folder / "model")
    epochs = arguments.setdefault("epochs", 2)
    given = {"layers": "adder", "gradient": "full", "rate": "alr", "seed": 0, **arguments}
    (folder / "arguments.json").write_text(json.dumps(given))
    rows = [
        {"epoch": i + 1, "train/loss": 1 / (i + 1), "val/top1": 90.0 + i} for i in range(epochs)
    ]
    metrics = {"test.top1": top1, "epochs": epochs, "history": rows}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_runs_are_recognised_by_their_arguments(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b", epochs=2, seed=1)
    write_run(tmp_path / "c", epochs=5, seed=2)
    write_run(tmp_path / "d", epochs=5, seed=1, arch="lenet5_bn")
    write_run(tmp_path / "e", epochs=9, gradient="sign")
    write_run(tmp_path / "f", epochs=9, arch="resnet20")
    write_run(tmp_path / "unfinished", epochs=50)
    (tmp_path / "unfinished" / "metrics.json").unlink()
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "metrics.json").write_text("{")
    runs = find_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["b", "c", "d", "e"]
    best = best_match(network("lenet5_bn", "adder"), runs)
    assert best is not None and best.folder.name == "d"
    assert best_match(network("lenet5_bn", "cnn"), runs) is None


def test_only_runs_that_were_trained_alike_are_compared(tmp_path: Path) -> None:
    cells = list(ABLATION.values())
    for gradient, rate in ABLATION:
        for seed in (0, 1):
            name = f"{gradient}-{rate}-{seed}"
            write_run(tmp_path / name, gradient=gradient, rate=rate, seed=seed, top1=90 + seed)
    write_run(tmp_path / "longer", epochs=50)
    write_run(tmp_path / "other", lr=0.5)
    groups = comparable(cells, find_runs(tmp_path))
    assert [[run.seed for run in cell] for cell in groups] == [[0, 1]] * 4
    assert {run.epochs for cell in groups for run in cell} == {2}
    assert curves.history(groups[0], "val/top1").tolist() == [[90, 91], [90, 91]]
    figure, numbers = curves.draw(groups)
    assert "| 0, 1 | 90.00, 91.00 | 90.50 | 99.40 |" in numbers
    loss = figure.axes[0].lines[0]
    assert np.array_equal(loss.get_xydata(), [[1, 1], [2, 0.5]])
    assert comparable(cells, find_runs(tmp_path / "longer")) == []


@pytest.mark.parametrize("family", ["Laplace", "Gaussian"])
def test_fits_are_of_maximum_likelihood(family: str) -> None:
    generator = np.random.default_rng(0)
    draws = generator.laplace if family == "Laplace" else generator.normal
    values = draws(2.0, 3.0, size=4001)
    found = {name: weights.fit(values, name) for name in ("Laplace", "Gaussian")}
    scale = np.abs(values - np.median(values)).mean()
    assert found["Laplace"].location == np.median(values)
    assert found["Laplace"].scale == pytest.approx(scale)
    assert found["Laplace"].log_likelihood == pytest.approx(-math.log(2 * scale) - 1)
    deviation = values.std()
    entropy = 0.5 * math.log(2 * math.pi * deviation**2) + 0.5
    assert found["Gaussian"].log_likelihood == pytest.approx(-entropy)
    ordered = np.sort(values)
    below = torch.distributions.Normal(values.mean(), deviation).cdf(torch.tensor(ordered)).numpy()
    steps = np.arange(len(values) + 1) / len(values)
    distance = max((steps[1:] - below).max(), (below - steps[:-1]).max())
    assert found["Gaussian"].distance == pytest.approx(distance)
    assert weights.better(found) == (family, family)


def test_geometry_tells_rays_from_clusters() -> None:
    generator = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    labels = np.repeat(np.arange(10), 200)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)[labels]
    noise = generator.normal(size=(2000, 2))
    rays = directions * generator.uniform(1, 100, (2000, 1)) + 0.1 * noise
    found = lenet_features.geometry(rays, labels, np.zeros(2000))
    assert found.by_network == 10
    assert found.by_angle > 99 and found.by_centre < 95
    assert found.elongation == pytest.approx(99 / math.sqrt(12) / 0.1, rel=0.1)
    grid = np.array([(x, y) for x in (1, 2, 3, 4, 5) for y in (1, 2)], dtype=float)
    clusters = grid[labels] + 0.05 * noise
    found = lenet_features.geometry(clusters, labels, labels)
    assert found.by_network == 100
    assert found.by_centre > 99 and found.by_angle < 90
    assert found.elongation == pytest.approx(1, abs=0.15)


def test_filters_in_numbers() -> None:
    generator = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(5.0), np.arange(5.0))[None]
    assert filters.smoothness(ramp) > 0.8
    assert abs(filters.smoothness(generator.normal(size=(500, 5, 5)))) < 0.05
    noise = generator.normal(size=(6, 5, 5))
    assert filters.likeness(2 - 3 * noise[:2], noise) == pytest.approx(1)
    orientations = filters.orientations(noise)
    assert np.array_equal(orientations[0], noise)
    assert len({orientation.tobytes() for orientation in orientations}) == 8
    corner = np.zeros((1, 5, 5))
    corner[0, 0, 0] = 1
    expected = abs(np.corrcoef(corner.ravel(), ramp.ravel())[0, 1])
    assert filters.likeness(corner, ramp) == pytest.approx(expected)


def test_gradient_norms(mnist_folder: Path) -> None:
    data = load_mnist(str(mnist_folder))
    adaptive = gradients.gradient_norms(data, True, True, seed=0)
    shapes = {"conv1": 150, "conv2": 2400, "fc1": 48_000, "fc2": 10_080, "fc3": 840}
    assert adaptive.keys() == shapes.keys()
    for layer, numel in shapes.items():
        assert adaptive[layer] == pytest.approx(0.2 * math.sqrt(numel), rel=1e-4)
    plain = gradients.gradient_norms(data, True, False, seed=0)
    assert all(plain[layer].shape == (1,) and plain[layer] < 0.1 for layer in shapes)

    torch.manual_seed(0)
    model = lenet5_bn()
    images = (data.train.images / 255 - 0.1307) / 0.3081
    F.cross_entropy(model(images), data.train.labels).backward()
    cnn = gradients.gradient_norms(data, False, False, seed=0)
    for layer in shapes:
        gradient = model.get_parameter(f"{layer}.weight").grad
        assert gradient is not None
        assert cnn[layer][0] == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_files_are_reproducible(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        with style.styled():
            figure = Figure(figsize=(2, 1))
            figure.subplots().plot([1, 2], color=style.CNN)
            paths = style.save(figure, "numbers", tmp_path / folder, "x")
        assert [path.name for path in paths] == ["x.png", "x.svg", "x.md"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes()


# Red, green and blue light as people without one kind of cone see them (Machado et al., 2009).
_PROTANOPIA = [(0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)]
_DEUTERANOPIA = [(0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)]


@pytest.mark.parametrize("seen", [np.eye(3), _PROTANOPIA, _DEUTERANOPIA])
def test_colour_blind_people_can_tell_the_classes_apart(seen: Any) -> None:
    """In CIELAB, where 2.3 is a just noticeable difference."""
    codes = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in style.TEN_CLASSES]
    light = np.where(np.array(codes) <= 0.04045, 0, ((np.array(codes) + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ np.array(seen).T, 0, 1)
    to_xyz = [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    xyz = light @ np.array(to_xyz).T / (0.9505, 1.0, 1.0888)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
    distances = np.linalg.norm(lab[:, None] - lab, axis=2)[~np.eye(10, dtype=bool)]
    assert distances.min() > 5 * 2.3


def test_the_command(
    mnist_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Everything from nothing, then again from what is there."""
    options = ["--runs", str(tmp_path / "runs"), "--data", str(mnist_folder), "--num-threads", "1",
               "--epochs", "1", "--output", str(tmp_path / "out")]  # fmt: skip
    assert command.main(options) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "pass --train" in captured.err
    assert "--arch lenet_plus_plus --layers cnn --lr 0.01 --output" in captured.err

    train, short = mnist.train, ["--batch-size", "96", "--max-steps", "1"]
    monkeypatch.setattr(mnist, "train", lambda argv: train([*argv, *short]))
    assert command.main([*options, "--train"]) == 0
    captured = capsys.readouterr()
    assert (
        captured.err.count("python -m recipes.mnist") == 7
    )  # the adder LeNet-5-BN is one of the ablation's
    assert [line for line in captured.out.splitlines() if line.startswith("## ")] == [
        "## features", "## filters", "## weights", "## curves", "## gradients", "## slopes"
    ]  # fmt: skip
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    names = sorted(command.FIGURES)
    assert written == [name + suffix for name in names for suffix in (".md", ".png", ".svg")]
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "out" / f"{name}.md").read_text().strip() in captured.out

    monkeypatch.setattr(mnist, "train", None)
    assert command.main(["filters", *options]) == 0
    assert capsys.readouterr().out.startswith("## filters\n")


def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        command.main(["feature"])
    assert (
        "'feature' is not a figure; expected some of features, filters" in capsys.readouterr().err
    )
    assert command.main(["gradients", "--data", str(tmp_path)]) == 1
    assert "no MNIST in" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["gradients"]) == 1
    assert "matplotlib and scipy: pip install" in capsys.readouterr().err


def test_slopes_rise_from_minus_one_to_one() -> None:
    figure, numbers = filter_slopes.draw()
    _, panel = figure.axes
    (curve,) = panel.lines
    heights = np.asarray(curve.get_ydata())
    assert heights[0] == pytest.approx(-1) and heights[-1] == pytest.approx(1)
    assert (np.diff(heights) >= -1e-12).all()
    rows = [[float(cell) for cell in line.split("|")[1:4]] for line in numbers.splitlines()[2:]]
    assert [row[0] for row in rows] == [-1, -0.5, 0, 0.5, 1]
    assert [round(row[2], 2) for row in rows] == [-1, pytest.approx(-0.8, abs=0.2), 0,
                                                 pytest.approx(0.8, abs=0.2), 1]  # fmt: skip
