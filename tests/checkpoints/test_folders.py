"""Saving and loading: the right weights in the right layers, or an error."""

from __future__ import annotations

import json
import math
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adderize import (
    AdderConv2d,
    AdderizeError,
    BinaryConv2d,
    adderize,
    load_authors_checkpoint,
    load_model,
    save_model,
)
from adderize.checkpoints import folder_files
from tests.surgery.test_adderize import LeNet, adder_names, small_cnn
from tests.test_whole_files import killed_at


def trained(model: nn.Module, size: tuple[int, ...] = (4, 3, 8, 8)) -> nn.Module:
    model(torch.randn(size))
    return model.eval()


@pytest.mark.parametrize(("device", "gradient"), [("cpu", "sign"), ("meta", "sign_input")])
def test_a_fresh_model_becomes_the_saved_one(tmp_path, device, gradient):
    saved = trained(adderize(small_cnn(), gradient=gradient))
    save_model(saved, tmp_path)
    with torch.device(device):
        fresh = small_cnn()
    loaded = load_model(fresh, tmp_path).eval()
    assert adder_names(loaded) == adder_names(saved)
    assert loaded[1][0].gradient == gradient
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


def test_weights_load_into_a_model_converted_in_the_same_way(tmp_path):
    saved = trained(adderize(small_cnn()))
    save_model(saved, tmp_path)
    loaded = load_model(adderize(small_cnn()), tmp_path).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


def test_the_manifest_says_what_was_converted(tmp_path):
    save_model(adderize(small_cnn(), init="normal"), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    norm = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
    assert manifest["layers"]["1.0"] == {"kind": "AdderConv2d", "gradient": "full", "norm": None}
    assert manifest["layers"]["2.0"] == {"kind": "AdderConv2d", "gradient": "full", "norm": norm}
    assert "torch" in manifest["libraries"]


@pytest.mark.parametrize("scale", [8.0, 1.0])
def test_the_manifest_tells_the_scale_of_the_filters(tmp_path, scale):
    save_model(adderize(small_cnn(), scale=scale), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    assert manifest["deviations"].keys() == manifest["layers"].keys()
    assert set(manifest["deviations"].values()) == {scale}


def test_the_manifest_of_filters_that_are_not_finite(tmp_path):
    model = adderize(small_cnn())
    with torch.no_grad():
        model.get_submodule("1.0").weight.fill_(math.nan)
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "adderize.json").read_text())["deviations"]["1.0"] is None


def test_a_tilde_is_the_users_own_folder(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    save_model(adderize(small_cnn()), "~/networks/small")
    assert (tmp_path / "home" / "networks" / "small" / "adderize.json").is_file()
    assert not (tmp_path / "~").exists()
    load_model(small_cnn(), "~/networks/small")
    save_model(adderize(small_cnn()), "~nobody-has-this-name")
    load_model(small_cnn(), tmp_path / "~nobody-has-this-name")


def test_a_save_that_ends_while_another_is_read(tmp_path, monkeypatch):
    """The manifest of one save never gets the tensors of another."""
    first, second = (adderize(small_cnn()) for _ in range(2))
    save_model(first, tmp_path)
    load_file = folder_files.load_file

    def replaced_meanwhile(path):
        monkeypatch.undo()
        save_model(second, tmp_path)
        return load_file(path)

    monkeypatch.setattr(folder_files, "load_file", replaced_meanwhile)
    with pytest.raises(AdderizeError, match="not of one save"):
        load_model(small_cnn(), tmp_path)
    found = load_model(small_cnn(), tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in second.state_dict().items())


def test_a_loaded_model_is_saved_as_it_was(tmp_path):
    save_model(adderize(small_cnn()), tmp_path / "a")
    save_model(load_model(small_cnn(), tmp_path / "a"), tmp_path / "b")
    for name in ("adderize.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, eps=0.5, momentum=None),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.SyncBatchNorm(8, eps=0.25),
    ],
    ids=str,
)
def test_inserted_norms_keep_their_options(tmp_path, norm):
    saved = adderize(small_cnn())
    saved[2][0].norm = norm
    if type(norm) is nn.BatchNorm2d:
        trained(saved)
    save_model(saved.eval(), tmp_path)
    loaded = load_model(small_cnn(), tmp_path).eval()
    for key in ("eps", "momentum", "affine", "track_running_stats"):
        assert getattr(loaded[2][0].norm, key) == getattr(norm, key)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Identity()], ids=str)
def test_other_norms_are_not_saved(tmp_path, norm):
    model = adderize(small_cnn())
    model[2][0].norm = norm
    with pytest.raises(AdderizeError, match=rf"2\.0\.norm is a {type(norm).__name__}"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.first.weight
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(self.stem(x)).relu()).relu()))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_layers_and_tied_filters_stay_tied(tmp_path, device):
    saved = trained(adderize(Tied()))
    save_model(saved, tmp_path)
    with torch.device(device):
        fresh = Tied()
    loaded = load_model(fresh, tmp_path).eval()
    assert loaded.first is loaded.second
    assert loaded.third.weight is loaded.first.weight
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


class UnsavedName(nn.Module):
    """A buffer under two names, the first of which is not saved."""

    def __init__(self):
        super().__init__()
        mean = torch.rand(3, 1, 1)
        self.register_buffer("first", mean, persistent=False)
        self.register_buffer("second", mean)
        self.register_buffer("third", mean)

    def forward(self, x):
        return x - self.second


def test_a_tensor_whose_first_name_is_not_saved(tmp_path):
    saved = UnsavedName()
    save_model(saved, tmp_path)
    loaded = load_model(UnsavedName(), tmp_path)
    assert loaded.second.equal(saved.second)
    assert loaded.first is loaded.second is loaded.third


def test_a_tie_that_the_saved_model_did_not_have(tmp_path):
    saved = Tied()
    saved.third.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    save_model(adderize(saved), tmp_path)
    with pytest.raises(AdderizeError, match=r"third\.weight and first\.weight are one tensor"):
        load_model(Tied(), tmp_path)


def test_filters_that_only_the_saved_model_ties_are_copies(tmp_path):
    save_model(adderize(Tied()), tmp_path)
    with torch.device("meta"):
        fresh = Tied()
        fresh.third.weight = nn.Parameter(torch.empty(4, 4, 3, 3))
    loaded = load_model(fresh, tmp_path)
    assert torch.equal(loaded.third.weight, loaded.first.weight)
    assert loaded.third.weight.data_ptr() != loaded.first.weight.data_ptr()


def test_buffers_without_values_are_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    with torch.device("meta"):
        fresh = small_cnn()
        fresh[0].register_buffer("scale", torch.ones(3), persistent=False)
    with pytest.raises(AdderizeError, match=r"0\.scale .*build the model on the CPU"):
        load_model(fresh, tmp_path)
    assert not adder_names(fresh)


def test_convolution_weights_do_not_go_into_adders(tmp_path):
    save_model(small_cnn(), tmp_path)
    with pytest.raises(AdderizeError, match=r"1\.0"):
        load_model(adderize(small_cnn()), tmp_path)


def test_a_model_without_the_layers_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    with pytest.raises(AdderizeError, match=r"1\.0"):
        load_model(LeNet(), tmp_path)


def test_another_shape_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    other = small_cnn()
    other[5] = nn.Linear(8, 5)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(AdderizeError, match=r"do not belong.* 5\.weight"):
        load_model(other, tmp_path)
    assert not adder_names(other)
    assert other.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_another_conversion_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    with pytest.raises(AdderizeError, match=r"2\.0"):
        load_model(adderize(small_cnn(), norm="ignore"), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "json", "weights", "format"])
def test_unusable_folders(tmp_path, damage):
    save_model(adderize(small_cnn()), tmp_path)
    if damage == "missing":
        (tmp_path / "adderize.json").unlink()
    elif damage == "json":
        (tmp_path / "adderize.json").write_text("{")
    elif damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"1234567890")
    else:
        (tmp_path / "adderize.json").write_text('{"format": 99}')
    with pytest.raises(AdderizeError, match=str(tmp_path)):
        load_model(small_cnn(), tmp_path)


DAMAGES = {
    "null": (lambda m: m.update(layers=None), "layers is None"),
    "list": (lambda m: m.update(layers=["1.0"]), "layers is"),
    "missing": (lambda m: m.pop("layers"), "layers is None"),
    "no ties": (lambda m: m.pop("shared"), "shared is None"),
    "without kind": (lambda m: m["layers"]["1.0"].pop("kind"), r"1\.0 .*expected its kind"),
    "no entry": (lambda m: m["layers"].update({"1.0": 3}), r"1\.0 is 3"),
    "kind": (lambda m: m["layers"]["1.0"].update(kind="Adder"), r"1\.0 should become Adder"),
    "gradient": (lambda m: m["layers"]["1.0"].update(gradient="half"), r"1\.0 .*'half'"),
    "norm": (lambda m: m["layers"]["2.0"].update(norm=True), r"2\.0 .*norm True"),
    "eps": (lambda m: m["layers"]["2.0"]["norm"].update(eps="small"), r"2\.0 .*small"),
    "settings": (lambda m: m["settings"].update({"1.0": 3}), r"settings of 1\.0 are 3"),
    "alias": (lambda m: m["shared"].update({"1.0.weight": "x.weight"}), r"x\.weight, which is not"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_manifests(tmp_path, case):
    save_model(adderize(small_cnn()), tmp_path)
    path = tmp_path / "adderize.json"
    damage, words = DAMAGES[case]
    manifest = json.loads(path.read_text())
    damage(manifest)
    path.write_text(json.dumps(manifest))
    model = small_cnn()
    with pytest.raises(AdderizeError, match=words):
        load_model(model, tmp_path)
    assert not adder_names(model)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdderizeError, match=r"cannot write to .*file"):
        save_model(small_cnn(), tmp_path / "file")


@pytest.mark.parametrize(
    ("wrap", "words"), [(nn.DataParallel, r"model\.module"), (torch.compile, r"model\._orig_mod")]
)
def test_wrapped_models(tmp_path, wrap, words):
    model = adderize(small_cnn())
    with pytest.raises(AdderizeError, match=words):
        save_model(wrap(model), tmp_path)
    save_model(model, tmp_path)
    with pytest.raises(AdderizeError, match=words):
        load_model(wrap(small_cnn()), tmp_path)


def test_a_model_without_values_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = small_cnn()
    with pytest.raises(AdderizeError, match="meta"):
        save_model(model, tmp_path)


FILES = ("adderize.json", "model.safetensors")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("moment", ["weights", "digest", "manifest"])
def test_an_interrupted_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch, moment):
    saved = trained(adderize(small_cnn()))
    save_model(saved, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    before = contents(tmp_path)

    def half_written(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "weights":
            patch.setattr(folder_files, "save_file", half_written)
        elif moment == "digest":
            patch.setattr(folder_files, "_digest", interrupted)
        else:
            patch.setattr(folder_files.Manifest, "to_json", interrupted)
        with pytest.raises((AdderizeError, KeyboardInterrupt)) as caught:
            save_model(small_cnn(), tmp_path)
    if moment == "weights":
        assert f"cannot write to {tmp_path}: No space left" in str(caught.value)
    assert contents(tmp_path) == before
    save_model(small_cnn(), tmp_path)
    assert set(contents(tmp_path)) == {*FILES, "README.md"}
    assert not adder_names(load_model(small_cnn(), tmp_path))


def test_files_of_two_saves(tmp_path):
    """As a crash between the replacement of one file and of the other leaves them."""
    save_model(small_cnn(), tmp_path / "old")
    save_model(adderize(small_cnn()), tmp_path / "new")
    weights = tmp_path / "new" / "model.safetensors"
    weights.replace(tmp_path / "old" / "model.safetensors")
    with pytest.raises(AdderizeError, match="not of one save"):
        load_model(small_cnn(), tmp_path / "old")


@pytest.mark.parametrize("earlier", [True, False])
def test_a_save_that_is_killed_between_its_files_can_be_finished(tmp_path, monkeypatch, earlier):
    if earlier:
        save_model(small_cnn(), tmp_path)
    with killed_at(1, monkeypatch):
        save_model(adderize(small_cnn()), tmp_path)
    with pytest.raises(AdderizeError, match="a save was interrupted, move") as caught:
        load_model(small_cnn(), tmp_path)
    (manifest,) = tmp_path.glob(".unfinished-*/adderize.json")
    assert f"move {manifest} there" in str(caught.value)
    manifest.replace(tmp_path / "adderize.json")
    assert adder_names(load_model(small_cnn(), tmp_path))


@pytest.mark.parametrize("call", [save_model, load_model, load_authors_checkpoint])
def test_arguments_in_the_wrong_order(tmp_path, call):
    with pytest.raises(AdderizeError, match=r"the model is a str; .*first of the arguments"):
        call(str(tmp_path), small_cnn())


def test_lazy_layers(tmp_path):
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(AdderizeError, match=r"0\.weight is lazy"):
        save_model(lazy, tmp_path)
    save_model(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path)
    with pytest.raises(AdderizeError, match=r"0\.weight is lazy"):
        load_model(lazy, tmp_path)


def test_a_folder_of_the_first_version(tmp_path):
    """Written by hand as version 0.1.0 wrote it."""
    norm = {"eps": 0.001, "momentum": 0.1, "affine": True, "track_running_stats": True}
    manifest = {
        "format": 1,
        "adderize": "0.1.0",
        "libraries": {"torch": "2.6.0"},
        "layers": {
            "1": {"kind": "AdderConv2d", "gradient": "sign", "norm": None},
            "2": {"kind": "BinaryConv2d", "gradient": None, "norm": norm},
        },
        "shared": {"3.weight": "1.weight"},
    }
    weights = {
        "0.weight": torch.randn(2, 3, 1, 1),
        "1.weight": torch.randn(2, 2, 1, 1),
        "2.weight": torch.randn(2, 2, 1, 1),
        **{f"2.norm.{key}": torch.rand(2) for key in ("weight", "bias")},
        **{f"2.norm.{key}": torch.rand(2) for key in ("running_mean", "running_var")},
        "2.norm.num_batches_tracked": torch.tensor(5),
    }
    (tmp_path / "adderize.json").write_text(json.dumps(manifest, indent=2))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    channels = [3, 2, 2, 2]
    layers = [nn.Conv2d(inputs, 2, 1, bias=False) for inputs in channels]
    layers[3].weight = layers[1].weight
    model = load_model(nn.Sequential(*layers), tmp_path).eval()
    assert type(model[1]) is AdderConv2d and model[1].gradient == "sign"
    assert type(model[2]) is BinaryConv2d and model[2].norm.eps == 0.001
    assert type(model[3]) is nn.Conv2d and model[3].weight is model[1].weight
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        save_model(nn.Linear(2, 2), tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}
