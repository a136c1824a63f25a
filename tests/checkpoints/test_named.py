"""Networks from every kind of file, with the adders that they were saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, adderize, load_model, save_model
from adderize.checkpoints.named import blank, load, start_from
from adderize.models import lenet5_bn, resnet20
from recipes.image_classifier import ImageClassifier

ARCH = "adderize.models:lenet5_bn"
ALL: dict[str, Any] = {"stem": True, "head": True, "linear": True}


def trained(**options: Any) -> nn.Module:
    """Every parameter and statistic is one that no constructor gives."""
    model = adderize(lenet5_bn(), **options) if options else lenet5_bn()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape) + 0.5
    return model


def adders(model: nn.Module) -> list[str]:
    kinds = AdderConv2d | AdderLinear
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and adders(found) == adders(expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_model(tmp_path: Path) -> None:
    model = trained(**ALL)
    save_model(model, tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path):  # the latter is what a recipe's run looks like
        loaded = load(str(folder), ARCH)
        assert_same(loaded.model, model)
        assert loaded.arch == ARCH and not loaded.note
        assert_same(start_from(lenet5_bn(), ARCH, str(folder)), model)
        assert_same(blank(str(folder), ARCH), model)
    with pytest.raises(AdderizeError, match="--arch"):
        load(str(tmp_path / "model"))


def test_options_beside_what_says_which_layers_are_adders(tmp_path: Path) -> None:
    model = trained(include="conv2")
    save_model(model, tmp_path / "model")
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    state["module.conv2.adder"] = state.pop("module.conv2.weight")
    torch.save(state, tmp_path / "authors.pth")
    module = ImageClassifier(ARCH, 7, conversion=ALL)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content, tmp_path / "last.ckpt")
    for name in ("model", "authors.pth", "last.ckpt"):
        with pytest.raises(AdderizeError, match=r"says itself .* leave out include"):
            load(str(tmp_path / name), ARCH, include="conv1")


def test_a_checkpoint_of_lightning_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for conversion in (ALL, {"include": "conv2"}, None):
        module = ImageClassifier(ARCH, 7, conversion=conversion)
        torch.save(
            {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path
        )
        loaded = load(str(path))
        assert_same(loaded.model, module.model)
        assert loaded.model.fc3.weight.shape[0] == 7 and not loaded.note


def test_the_authors_keys_say_which_layers_are_adders(tmp_path: Path) -> None:
    model = trained(include="conv2")
    path = tmp_path / "authors.pth"
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    state["module.conv2.adder"] = state.pop("module.conv2.weight")
    torch.save(state, path)
    assert_same(load(str(path), ARCH).model, model)
    state["module.conv9.adder"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(AdderizeError, match=r"conv9\.adder"):
        load(str(path), ARCH)


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
def test_plain_state_dicts_need_to_be_told(tmp_path: Path, prefix: str) -> None:
    model = trained(**ALL)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    if prefix:
        state["loss.weight"] = torch.zeros(10)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    loaded = load(str(path), ARCH, **ALL)
    assert_same(loaded.model, model)
    assert "5 were taken as such" in loaded.note
    with pytest.raises(AdderizeError, match=r"the model lacks .*fc1\.norm"):
        load(str(path), ARCH)


def test_small_filters_are_asked_about(tmp_path: Path) -> None:
    """A convolution's weights as a file of adders: the file cannot tell, the sizes can."""
    path = tmp_path / "x.pth"
    for deviation, asked in ((0.1, True), (1.0, False)):
        model = resnet20()
        for parameter in model.parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, std=deviation)
        torch.save(model.state_dict(), path)
        note = load(str(path), "adderize.models:resnet20").note
        assert ("The filters' standard deviation is 0.1, where adders" in note) == asked
        start = load(str(path), "adderize.models:resnet20", exclude="*")
        assert "convolutional network" not in start.note


def test_convolutions_and_safetensors(tmp_path: Path) -> None:
    model = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load(str(tmp_path / "model.safetensors"), ARCH, exclude="*")
    assert_same(loaded.model, model)
    assert "0 were taken" in loaded.note


def test_an_architecture_is_converted_as_planned() -> None:
    assert adders(load(ARCH).model) == ["conv2"]
    assert len(adders(load(ARCH, **ALL).model)) == 5
    assert adders(load(ARCH, exclude="*").model) == []


@pytest.mark.parametrize("file", ["model.safetensors", "adderize.json"])
def test_a_file_of_a_saved_model_stands_for_its_folder(file: str, tmp_path: Path) -> None:
    """The weights alone do not say that the first and last layers are adders too."""
    model = trained(**ALL)
    save_model(model, tmp_path)
    loaded = load(str(tmp_path / file), ARCH)
    assert_same(loaded.model, model)
    assert not loaded.note
    assert_same(start_from(lenet5_bn(), ARCH, str(tmp_path / file)), model)
    assert_same(load_model(lenet5_bn(), tmp_path / file), model)
    copy = tmp_path / "copy"
    copy.mkdir()
    (tmp_path / "model.safetensors").rename(copy / "model.safetensors")
    assert load(str(copy / "model.safetensors"), ARCH, **ALL).note


def test_a_checkpoint_gets_no_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be whatever function of whatever module the file names."""
    (tmp_path / "own_networks.py").write_text(
        "from pathlib import Path\n"
        "from adderize.models import lenet5_bn\n"
        "Path('imported').touch()\n"
        "def network(num_classes=10): return lenet5_bn(num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    model, path = lenet5_bn(7), tmp_path / "last.ckpt"
    said = {"arch": "own_networks:network", "num_classes": 7, "conversion": None}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": said}, path)
    with pytest.raises(AdderizeError, match="if you trust it, give --arch own_networks:network"):
        load(str(path))
    assert not (tmp_path / "imported").exists()
    loaded = load(str(path), "own_networks:network")
    assert_same(loaded.model, model)
    assert not loaded.note


@pytest.mark.parametrize(
    "said",
    [
        {"conversion": "none"},
        {"arch": 18},
        {"arch": {"depth": 18}},
        {"num_classes": None},
        {"arch_options": "x"},
    ],
)
def test_hyper_parameters_of_somebody_elses_module(said: dict[str, Any], tmp_path: Path) -> None:
    model = lenet5_bn()
    content = {"state_dict": model.state_dict(), "hyper_parameters": said}
    torch.save(content, tmp_path / "last.ckpt")
    assert_same(load(str(tmp_path / "last.ckpt"), ARCH, exclude="*").model, model)
    assert_same(start_from(lenet5_bn(), ARCH, str(tmp_path / "last.ckpt")), model)


def test_options_that_no_conversion_has_are_named(tmp_path: Path) -> None:
    said = {"conversion": {"to": "coco", "stem": True}}
    content = {"state_dict": lenet5_bn().state_dict(), "hyper_parameters": said}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(AdderizeError, match=r"options of a conversion that .* not have, to; if"):
        load(str(tmp_path / "last.ckpt"), ARCH)


def test_objects_in_a_file_are_named(tmp_path: Path) -> None:
    content = {"state_dict": lenet5_bn().state_dict(), "hyper_parameters": {"data": tmp_path}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(AdderizeError, match=r"holds pathlib\.\w+ objects, .* a state dict"):
        load(str(tmp_path / "last.ckpt"), ARCH)


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def error(content: Any, arch: str | None = ARCH) -> str:
        torch.save(content, path)
        with pytest.raises(AdderizeError) as caught:
            load(str(path), arch)
        return str(caught.value)

    assert "holds a Tensor" in error(torch.zeros(1))
    assert "no state dict" in error({"state_dict": {"a": 1}})
    assert "no state dict" in error({})
    assert "--arch" in error(lenet5_bn().state_dict(), None)
    assert "do not belong" in error(lenet5_bn().state_dict(), "adderize.models:resnet20")
    state: dict[str, Tensor] = {"a": torch.zeros(1)}
    assert "lack conv1.weight" in error(state)
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(AdderizeError, match=r"x\."):
            load(str(tmp_path / name), ARCH)
    with pytest.raises(AdderizeError, match="does not exist"):
        load(str(tmp_path / "nowhere.pth"))
    with pytest.raises(AdderizeError, match="does not exist; expected a checkpoint"):
        load("resnet18", ARCH)


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    """A student beside its teacher, a network beside its average: which one is not guessed."""
    one, two = trained(), trained()
    path = tmp_path / "last.ckpt"
    state = {f"student.{name}": tensor for name, tensor in one.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(1)}}, path)
    assert_same(load(str(path), ARCH, exclude="*").model, one)
    state |= {f"teacher.{name}": tensor for name, tensor in two.state_dict().items()}
    torch.save({"state_dict": state}, path)
    with pytest.raises(AdderizeError, match=r"2 times, as student\., teacher\."):
        load(str(path), ARCH, exclude="*")
    # A student of before torch counted batches is not less of a network than its teacher.
    torch.save({k: v for k, v in state.items() if "num_batches" not in k or k[0] == "t"}, path)
    with pytest.raises(AdderizeError, match=r"2 times, as student\., teacher\."):
        load(str(path), ARCH, exclude="*")
    torch.save({"model": one.state_dict(), "net": two.state_dict()}, path)
    with pytest.raises(AdderizeError, match="2 state dicts, model and net"):
        load(str(path), ARCH, exclude="*")


def test_a_part_that_fits_best_is_taken(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "last.ckpt"
    state = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state | {"old.conv1.weight": torch.zeros(6, 1, 5, 5)}, path)
    assert_same(load(str(path), ARCH, exclude="*").model, model)
    del state["net.fc3.bias"]
    torch.save(state, path)
    with pytest.raises(AdderizeError, match=r"they lack fc3\.bias"):
        load(str(path), ARCH, exclude="*")


class Inside(nn.Module):
    """Its own names begin as those that wrappers add."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_names_that_begin_as_prefixes_do(prefix: str, tmp_path: Path) -> None:
    model = Inside()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    assert_same(start_from(Inside(), "-", str(tmp_path / "a.pth")), model)


def test_compiled_and_sharded_parts(tmp_path: Path) -> None:
    model = trained()
    state = {
        name.replace("fc1.", "fc1._orig_mod.").replace("fc2.", "_fsdp_wrapped_module.fc2."): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(state, tmp_path / "a.pth")
    assert_same(load(str(tmp_path / "a.pth"), ARCH, exclude="*").model, model)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_averaged_weights_beside_are_said(key: str, tmp_path: Path) -> None:
    model, average = trained(), trained()
    content = {key: model.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    assert "model_ema" not in load(str(tmp_path / "a.pth"), ARCH, exclude="*").note
    torch.save(content | {"model_ema": average.state_dict()}, tmp_path / "a.pth")
    loaded = load(str(tmp_path / "a.pth"), ARCH, exclude="*")
    assert_same(loaded.model, model)
    assert f"averaged weights too (model_ema); these are those of {key}" in loaded.note


def test_everything_that_lightning_keeps_of_a_network_is_used(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for options in (
        {"arch_options": {"shortcut": "A", "logits_norm": False}, "conversion": {}},
        {"binarization": {"include": "layer1.*"}},
    ):
        module = ImageClassifier("resnet20", 5, **options)
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        torch.save(content, path)
        loaded = load(str(path))
        ours, theirs = loaded.model.state_dict(), module.model.state_dict()
        assert ours.keys() == theirs.keys() and not loaded.note
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        kinds = [[type(m) for m in model.modules()] for model in (loaded.model, module.model)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("said", ["recipes.models:lenet5_bn", "lenet5_bn", ARCH])
def test_names_that_one_network_had(said: str, tmp_path: Path) -> None:
    """`recipes.models` is where the networks were before."""
    module = ImageClassifier(said, 7, conversion=ALL)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content, tmp_path / "last.ckpt")
    for arch in (None, "lenet5_bn", "recipes.models:lenet5_bn", ARCH):
        loaded = load(str(tmp_path / "last.ckpt"), arch)
        assert_same(loaded.model, module.model)
        assert not loaded.note
    with pytest.raises(AdderizeError, match="do not belong"):
        load(str(tmp_path / "last.ckpt"), "resnet20")


def test_lightnings_average_is_what_was_validated(tmp_path: Path) -> None:
    module = ImageClassifier(ARCH, 10)
    current = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    content = {
        "state_dict": module.state_dict(),
        "current_model_state": current,
        "averaging_state": {"n_averaged": torch.tensor(3)},
        "hyper_parameters": dict(module.hparams),
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_same(load(str(tmp_path / "last.ckpt")).model, module.model)


def test_bytes_are_no_float_weights(tmp_path: Path) -> None:
    state = trained().state_dict()
    state["conv2.weight"] = torch.randint(0, 255, (16, 6, 5, 5), dtype=torch.uint8)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(AdderizeError, match=r"conv2\.weight holds torch\.uint8"):
        load(str(tmp_path / "a.safetensors"), ARCH, exclude="*")


def test_a_convolutions_filters_are_not_the_authors(tmp_path: Path) -> None:
    """Half of the filters have the authors' name: the others stay convolutions."""
    model = trained(include="conv2", norm="ignore")
    state = model.state_dict()
    state["conv2.adder"] = state.pop("conv2.weight")
    torch.save(state, tmp_path / "a.pth")
    assert adders(load(str(tmp_path / "a.pth"), ARCH).model) == ["conv2"]
    assert_same(start_from(lenet5_bn(), ARCH, str(tmp_path / "a.pth")), model)
