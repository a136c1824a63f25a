"""Saving and loading: the right weights in the right layers, or an error."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from adderize import (
    AdderizeError,
    adderize,
    load_authors_checkpoint,
    load_model,
    save_model,
)
from adderize.models import resnet20
from tests.surgery.test_adderize import LeNet, adder_names, small_cnn


def trained(model: nn.Module, size: tuple[int, ...] = (4, 3, 8, 8)) -> nn.Module:
    model(torch.randn(size))
    return model.eval()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_fresh_model_becomes_the_saved_one(tmp_path, device):
    saved = trained(adderize(small_cnn(), gradient="sign"))
    save_model(saved, tmp_path)
    with torch.device(device):
        fresh = small_cnn()
    loaded = load_model(fresh, tmp_path).eval()
    assert adder_names(loaded) == adder_names(saved)
    assert loaded[1][0].gradient == "sign"
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


def authors_network(adders: bool = True) -> nn.Module:
    model = resnet20()
    return adderize(model, init="normal") if adders else model


def as_the_authors_write(model: nn.Module) -> dict[str, torch.Tensor]:
    adders = set(adder_names(model))
    return {
        "module." + (key.removesuffix("weight") + "adder" if key[:-7] in adders else key): value
        for key, value in model.state_dict().items()
    }


def test_authors_checkpoint(tmp_path):
    source = authors_network()
    torch.save(as_the_authors_write(source), tmp_path / "a.pth")
    model = load_authors_checkpoint(authors_network(), tmp_path / "a.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_authors_checkpoint_in_the_wrong_kind_of_layer(tmp_path):
    torch.save(as_the_authors_write(authors_network()), tmp_path / "adders.pth")
    torch.save(as_the_authors_write(authors_network(adders=False)), tmp_path / "cnn.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(authors_network(adders=False), tmp_path / "adders.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(authors_network(), tmp_path / "cnn.pth")


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(AdderizeError, match="no file"):
        load_authors_checkpoint(authors_network(), tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(AdderizeError, match="not a PyTorch checkpoint"):
        load_authors_checkpoint(authors_network(), tmp_path / "text.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "number.pth")
    with pytest.raises(AdderizeError, match="state dict"):
        load_authors_checkpoint(authors_network(), tmp_path / "number.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AdderizeError, match="state dict"):
        load_authors_checkpoint(authors_network(), tmp_path / "list.pth")


@pytest.mark.shared
def test_the_authors_own_file(models_folder):
    path = models_folder / "resnet20-addernet-cifar10.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = load_authors_checkpoint(authors_network(), path)
    for key in ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.2.conv2"):
        assert torch.equal(model.get_submodule(key).weight, stored[f"module.{key}.adder"])
    assert torch.equal(model.bn2.running_var, stored["module.bn2.running_var"])
