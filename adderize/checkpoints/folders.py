"""Saving and loading converted models as folders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from adderize.arguments import check_module, own_path
from adderize.checkpoints.folder_files import card_text, read_files, write_files
from adderize.checkpoints.hub import local_folder
from adderize.checkpoints.manifest import Manifest
from adderize.checkpoints.model_card import ModelCard
from adderize.checkpoints.programs import described, program_from
from adderize.checkpoints.state_dicts import StateDict, aliases_of, load_weights
from adderize.checkpoints.tensors import storable, unshared
from adderize.checkpoints.values import encoded
from adderize.errors import AdderizeError, listed
from adderize.integer import IntegerNetwork
from adderize.integer.multiplication_free import (
    ShiftRecord,
    multiplication_free_like,
    shifts_of_network,
)
from adderize.layers.settings import differences, settings_of
from adderize.quantize.fake_layers import check_no_fakes
from adderize.quantize.record import Quantization, quantization_of, rebuild
from adderize.surgery.entries import convert_like, converted_entries, filter_deviations
from adderize.surgery.restoration import all_or_none


def save_model(model: nn.Module, folder: str | Path, *, card: ModelCard | None = None) -> None:
    """Write a model's weights and what was converted in it.

    A folder that holds a saved model already gets the new one whole, or stays as it is.

    Args:
        model: a model with or without adders or binary layers, not wrapped. What its modules'
            ``get_extra_state`` gives may be None, tensors, numbers, strings, and lists, tuples and
            dicts of them.
        folder: created where absent; gets ``model.safetensors`` (the state dict) and
            ``adderize.json`` (converted layers, their kind, gradient, own norm and the deviation of
            their filters, strides and other settings of all layers, shared tensors, library
            versions; for a quantized model the scales, zero points and bits of its tensors; of an
            integer network its program), and a model card, ``README.md``, with the metadata of the
            Hugging Face Hub, so that uploading the folder is all. A ``README.md`` that somebody
            else wrote stays, unless a card is given.
        card: what to say there: the network that the weights come from, metrics, a text.

    Raises:
        AdderizeError: a wrapped model, tensors on the meta device or of a kind that safetensors
            does not hold, extra state of another type, a converted layer whose ``norm`` is not a
            plain batch norm, or a folder that cannot be written.
    """
    _check_model(model)
    folder = own_path(folder)
    if isinstance(model, IntegerNetwork):
        program, tensors = described(model.program)
        manifest = Manifest({}, {}, program=program)
        return write_files(folder, unshared(tensors), manifest, card_text(model, folder, card))
    state = model.state_dict()
    aliases = aliases_of(model)
    tensors = dict[str, Tensor]()
    values: dict[str, Any] = {}

    def store(name: str, tensor: Tensor) -> None:
        tensors[name] = storable(name, tensor)

    for name, entry in state.items():
        if isinstance(entry, Tensor) and name not in aliases:
            store(name, entry)
        elif not isinstance(entry, Tensor):
            values[name] = encoded(name, entry, store)
    quantization, shifts = quantization_of(model), shifts_of_network(model)
    metadata = getattr(state, "_metadata", {})
    plain = (quantization or shifts) is None
    manifest = Manifest(
        layers=_entries(model),
        shared=aliases,
        quantized=quantization and quantization.to_dict(),
        shifts=shifts and shifts.to_dict(),
        values=values,
        versions={n: v for n, m in metadata.items() if (v := m.get("version", 1)) != 1},
        settings=settings_of(model) if plain else None,
        deviations=filter_deviations(model) if plain else None,
    )
    write_files(folder, unshared(tensors), manifest, card_text(model, folder, card))


def _entries(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The entries of converted layers; in a network made from the float one, those of that one."""
    check_no_fakes(model, "quantize() it and save that, or save its state_dict()")
    record = quantization_of(model) or shifts_of_network(model)
    if record is None:
        return converted_entries(model)
    if record.entries is None:
        raise AdderizeError(
            "the model had adders with norms of other kinds than batch norm: put those norms "
            "after the layers in the model itself, then convert it again and save"
        )
    return record.entries


@overload
def load_model(model: str | Path) -> IntegerNetwork: ...
@overload
def load_model(model: nn.Module, folder: str | Path) -> nn.Module: ...
def load_model(model: nn.Module | str | Path, folder: str | Path | None = None) -> nn.Module:
    """Convert a fresh model as the saved one was, then load the saved weights.

    An integer network needs no model: ``load_model(folder)``.

    While the network of a quantized folder is traced, torch.fx patches ``nn.Module`` for the whole
    process: let no other thread call or trace any model meanwhile.

    Args:
        model: built as the saved one was before its conversion, or converted in the same way; on
            any device, the meta device too (its parameters become the loaded tensors). Of an
            integer network, the folder.
        folder: what :func:`save_model` wrote; ``hf://owner/name`` or ``hf://owner/name@revision``
            for one on the Hugging Face Hub, which is downloaded once.

    Returns:
        the model itself; a new one, in evaluation mode, where the saved one was quantized or
        without multiplications; the :class:`~adderize.integer.IntegerNetwork`.

    Raises:
        AdderizeError: files missing, damaged or not of one save, a wrapped model, buffers on the
            meta device that no weights are saved for, or a model that the weights do not belong to,
            also one whose layers have other strides, paddings, eps or activations: the message
            names the layers, and the model is left as it was. No such folder on the Hub, or no
            way there.
    """
    if isinstance(model, (str, Path)) and folder is None:
        return _load_integers(local_folder(model))
    _check_model(model)
    assert isinstance(model, nn.Module)
    _check_buffers(model)
    if folder is None:
        raise AdderizeError("load_model() got no folder; only integer networks need no model")
    folder = local_folder(folder)
    manifest, state = read_files(folder)
    if manifest.program is not None:
        raise AdderizeError(f"{folder} holds an integer network: load_model(folder) takes no model")
    if manifest.quantized is not None or manifest.shifts is not None:
        return _load_made(copy.deepcopy(model), manifest, state, folder)
    saved = manifest.layers
    present = converted_entries(model)
    strangers = [name for name in present if name not in saved]
    if strangers:
        raise AdderizeError(
            f"{folder} holds plain layers where the model has converted ones: {listed(strangers)}; "
            "load into a model that is not converted, or restore() this one first"
        )
    new = {name: entry for name, entry in saved.items() if name not in present}
    with all_or_none(model):
        if new:
            convert_like(model, new)
        entries = converted_entries(model)
        different = [name for name, entry in entries.items() if entry != saved[name]]
        if different:
            raise AdderizeError(
                f"the layers {listed(different)} differ from the saved ones in kind, gradient or "
                "norm; load into a model that is not converted"
            )
        _load(model, manifest, state, folder)
    return model


def _load_integers(folder: Path) -> IntegerNetwork:
    manifest, state = read_files(folder)
    if manifest.program is None:
        raise AdderizeError(
            f"{folder} holds no integer network: load_model(model, folder) takes the model that "
            "the weights belong to"
        )
    try:
        return IntegerNetwork(program_from(manifest.program, state))
    except AdderizeError as error:
        raise AdderizeError(f"{folder} holds an unsound integer network: {error}") from error


def _load_made(model: nn.Module, manifest: Manifest, state: StateDict, folder: Path) -> nn.Module:
    """A network that was made from the converted one: quantized, or without multiplications."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().zero_()
    present = converted_entries(model)
    convert_like(model, {n: entry for n, entry in manifest.layers.items() if n not in present})
    if converted_entries(model) != manifest.layers:
        raise AdderizeError(f"the model's converted layers are not those of {folder}")
    record: Quantization | ShiftRecord
    if manifest.quantized is not None:
        record = Quantization.from_dict(manifest.quantized, manifest.layers)
    else:
        record = ShiftRecord.from_dict(manifest.shifts, manifest.layers)
    _check_settings(model, record.settings, folder)
    if isinstance(record, Quantization):
        made = rebuild(model, record)
    else:
        made = multiplication_free_like(model, record)
    _load(made, manifest, state, folder)
    return made


def _load(model: nn.Module, manifest: Manifest, state: StateDict, folder: Path) -> None:
    _check_settings(model, manifest.settings, folder)
    _check_ties(model, manifest.shared, folder)
    for alias, name in manifest.shared.items():
        state[alias] = state[name].clone()
    if manifest.versions is not None:
        versions = {name: manifest.versions.get(name, 1) for name, _ in model.named_modules()}
        state._metadata = {name: {"version": version} for name, version in versions.items()}
    load_weights(model, state, folder)


def _check_model(model: object) -> None:
    check_module(model)
    assert isinstance(model, nn.Module)
    found = type(model).__name__
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise AdderizeError(f"the model is wrapped ({found}): pass what it wraps, model.module")
    if found == "OptimizedModule":
        raise AdderizeError("the model is compiled: pass what torch.compile got, model._orig_mod")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise AdderizeError(
                f"{name} is lazy, its shape is unknown: run one forward pass before that"
            )


def _check_buffers(model: nn.Module) -> None:
    state = model.state_dict()
    lost = [name for name, b in model.named_buffers() if b.is_meta and name not in state]
    if lost:
        raise AdderizeError(
            f"the buffers {listed(lost)} are on the meta device and not among saved weights "
            "(persistent=False): build the model on the CPU"
        )


def _check_ties(model: nn.Module, shared: Mapping[str, str], folder: Path) -> None:
    for alias, name in aliases_of(model).items():
        if shared.get(alias, alias) != shared.get(name, name):
            raise AdderizeError(
                f"{alias} and {name} are one tensor in the model and two in {folder}: build the "
                "model as the saved one was"
            )


def _check_settings(
    model: nn.Module, saved: Mapping[str, dict[str, Any]] | None, folder: Path
) -> None:
    if found := differences(model, saved or {}):
        raise AdderizeError(
            f"the model is built otherwise than the one in {folder}: {listed(found)}; build it as "
            "the saved one was, and change it after that"
        )
