"""From a name to a configuration and a network in memory, whatever the weights are kept in."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from bild.data.json_text import from_json
from bild.errors import LoadError, one_line
from bild.models.joined import MARK, attach_joined, unreported
from bild.models.loading import gguf
from bild.models.loading.adapters import Adapter, adapter_of, merge
from bild.models.loading.hardware import bytes_of_weights, check_memory
from bild.models.loading.kinds import auto_class
from bild.models.loading.pickled import without_pickle
from bild.models.loading.place import Place, find, not_there
from bild.models.loading.quantised import check_quantised, method_of

LITTLE = 500_000_000
"""Bytes of files too small to ask whether they fit."""


@dataclass(frozen=True)
class Source:
    """What a checkpoint is loaded from.

    Args:
        model: where the configuration and the weights are: of the base model where there is an adapter.
        folder: the same as transformers reads it; of a GGUF file all but the weights.
        adapter: what is merged into it.
    """

    model: Place
    folder: Place
    adapter: Adapter | None = None


def open_source(name: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None) -> Source:
    """What a name stands for, with the base model of an adapter.

    Raises:
        LoadError: nothing there, or something that cannot be loaded.
    """
    place = find(name, revision=revision, subfolder=subfolder)
    adapter = adapter_of(place)
    if adapter is not None:
        place = _base_of(adapter)
    return Source(place, gguf.outline(place) if place.gguf else place, adapter)


def _base_of(adapter: Adapter) -> Place:
    try:
        base = find(adapter.base, revision=adapter.base_revision)
    except LoadError as error:
        raise LoadError(f"{adapter.place.name}: its base model is not there ({error})") from None
    if adapter_of(base) is not None:
        raise LoadError(f"{adapter.place.name}: its base model {adapter.base} is an adapter too; merge that one first")
    return base


def load_config(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The configuration of a checkpoint, or of a folder that holds nothing else.

    Args:
        name: a folder, a GGUF file or a name on the hub, see :func:`~bild.models.loading.place.find`.
        revision: of a hub repository whose name does not say.
        subfolder: of a folder or repository, likewise.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        LoadError: nothing there, or nothing that can be read.
    """
    return _config(open_source(name, revision=revision, subfolder=subfolder), trust_remote_code)


def _config(source: Source, trust_remote_code: bool) -> PreTrainedConfig:
    config: PreTrainedConfig = read(AutoConfig, source.folder, trust_remote_code=trust_remote_code)
    return config


def load_network(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
    trainable: bool = False,
) -> PreTrainedModel:
    """Load an encoder-decoder or decoder-only checkpoint with its language-model head.

    Args:
        name: a folder, a GGUF file or a name on the hub, see :func:`~bild.models.loading.place.find`.
        dtype: number format of the weights.
        device: where to put them.
        revision: of a hub repository whose name does not say.
        subfolder: of a folder or repository, likewise.
        trust_remote_code: whether code that comes with the checkpoint may run.
        config: in place of the checkpoint's own, see :func:`load_config`.
        trainable: whether the weights will change, which quantised ones cannot.

    Raises:
        LoadError: nothing there, a model that does not write text from text, quantised weights this machine cannot
            use, too little memory, or weights that are missing or damaged.
    """
    source = open_source(name, revision=revision, subfolder=subfolder)
    config = _config(source, trust_remote_code) if config is None else config
    check_loadable(source, config, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    quantised = method_of(config) is not None
    if trainable and quantised:
        raise LoadError(f"{name}: its weights are quantised ({method_of(config)}) and cannot be trained")
    network = _read_network(source, config, dtype, device if quantised else None, trust_remote_code)
    if getattr(config, MARK, False):
        attach_joined(network, source.model)
    if source.adapter is not None:
        network = merge(source.adapter, network)
    network = _on_device(network, name, None if quantised else device)
    network.eval()
    return network


def check_loadable(
    source: Source, config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
) -> int:
    """Whether the weights are worth reading: the kind of model, quantisation and memory.

    Returns:
        Bytes they will take in memory; 0 where that is little or, as with quantised ones, not known.

    Raises:
        LoadError: they are not, and why.
    """
    name = source.model.name
    kind = auto_class(config, name, trust_remote_code)
    check_quantised(config, name, device)
    if method_of(config) is not None or (source.model.is_local and _stored(source.model) < LITTLE):
        return 0
    try:
        needed = bytes_of_weights(kind, config, dtype, trust_remote_code)
    except Exception:  # a shape that no network has is better explained by loading it
        return 0
    check_memory([(name, needed)], device)
    return needed


def _stored(place: Place) -> int:
    files = [Path(place.root) / place.gguf] if place.gguf else Path(place.root).iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def _read_network(
    source: Source, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | None, trust: bool
) -> PreTrainedModel:
    """The network; onto a device only where it cannot be moved there later."""
    name = source.model.name
    kind = auto_class(config, name, trust)

    def check(report: dict[str, Any]) -> None:
        missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
        if missing:
            raise LoadError(
                f"{name}: {len(missing)} weights are missing or of another shape, the first is {missing[0]}"
            )

    _check_generation_config(source.model)
    if source.model.gguf:
        place = gguf.with_weights(source.model, kind, config, dtype, check)
    else:
        place = without_pickle(source.model)
    options: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
    with unreported() if getattr(config, MARK, False) else nullcontext():
        network, report = read(
            kind,
            place,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=trust,
            **options,
        )
    check(report)
    loaded: PreTrainedModel = network
    return loaded


def _check_generation_config(place: Place) -> None:
    """Whether the options that a checkpoint recommends can be read: transformers goes on without them, to another text.

    Raises:
        LoadError: they cannot.
    """
    file = place.file(GENERATION_CONFIG_NAME) if place.is_local and not place.gguf else None
    if file is None:
        return
    try:
        if not isinstance(from_json(file.read_bytes()), dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read ({one_line(error)}); mend it, or remove it") from None


def _on_device(network: PreTrainedModel, name: object, device: torch.device | None) -> PreTrainedModel:
    if device is None:
        return network
    try:
        module: nn.Module = network
        module.to(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # no memory left, or weights that cannot move
        raise LoadError(f"{name}: cannot be put on {device} ({one_line(error)})") from error
    return network


def outline_network(config: PreTrainedConfig, name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A network of this shape without any weights, to look at its layers.

    Args:
        config: of a checkpoint.
        name: of that checkpoint.
        trust_remote_code: whether code that comes with it may run.

    Raises:
        LoadError: a shape that does not generate text.
    """
    with torch.device("meta"):
        network: PreTrainedModel = auto_class(config, name, trust_remote_code).from_config(
            config, trust_remote_code=trust_remote_code
        )
    return network


def new_network(config: PreTrainedConfig) -> PreTrainedModel:
    """A float32 network of this shape with random weights, from torch's generator.

    Raises:
        LoadError: a shape that does not generate text.
    """
    network: PreTrainedModel = auto_class(config, config.model_type).from_config(config)
    network.float()
    return network


def read(kind: Any, place: Place, **options: Any) -> Any:
    """``kind.from_pretrained`` with one line for whatever it raises."""
    try:
        return kind.from_pretrained(place.root, **place.options, **options)
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        if not place.is_local:
            raise not_there(place, error) from error
        raise LoadError(f"{place.name}: cannot be loaded ({one_line(error)})") from error
