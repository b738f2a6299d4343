"""``pytorch_model.bin``, read as weights only and written as safetensors, once."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bild.errors import LoadError, one_line
from bild.models.loading.place import Place
from bild.models.loading.prepared import prepared

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BESIDE = ("config.json", "generation_config.json")
"""Files transformers reads beside the weights."""


def without_pickle(place: Place) -> Place:
    """The checkpoint itself, or where it has no safetensors but pickled weights a converted copy.

    Raises:
        LoadError: the pickle holds something other than weights or is damaged, or there is no room for the copy.
    """
    if place.file(SAFE) is not None or place.file(SAFE_INDEX) is not None:
        return place
    index = place.file(PICKLED_INDEX)
    names = [PICKLED] if index is None else _parts(index, place)
    files = {name: place.file(name) for name in names}
    found = {name: file for name, file in files.items() if file is not None}
    if index is not None and len(found) < len(files):
        raise LoadError(f"{place.name}: {min(files.keys() - found.keys())} is missing, which {PICKLED_INDEX} names")
    if not found:
        return place
    beside = [file for name in BESIDE if (file := place.file(name)) is not None]
    if place.is_local:
        beside += Path(place.root).glob("*.py")
    folder = prepared(
        place.name,
        [*found.values(), *beside],
        lambda folder: _convert(list(found.items()), beside, folder, place.name),
        what="safetensors",
        size=sum(file.stat().st_size for file in found.values()),
    )
    return Place(place.name, str(folder))


def _parts(index: Path, place: Place) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{place.name}: {PICKLED_INDEX} cannot be read ({one_line(error)})") from None


def _convert(files: list[tuple[str, Path]], beside: list[Path], folder: Path, name: str) -> None:
    held: dict[str, str] = {}
    for number, (file, path) in enumerate(files, 1):
        weights = _read(path, f"{name}: {file}")
        target = SAFE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(weights, folder / target, metadata={"format": "pt"})
        held |= dict.fromkeys(weights, target)
    if len(files) > 1:
        (folder / SAFE_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": held}), encoding="utf-8")
    for path in beside:
        shutil.copyfile(path, folder / path.name)


def _read(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a pickle; each in memory of its own, as safetensors want them."""
    try:
        # What torch wrote before version 1.6 is no archive and cannot be mapped.
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # UnpicklingError, and whatever a damaged file makes of torch
        raise LoadError(
            f"{name} cannot be read as weights ({_why(error)}); bild reads safetensors and pickles that hold tensors "
            "alone: load it where it was made, write it with save_pretrained, and name that folder"
        ) from error
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)} if _maps(loaded) else {}
    if not tensors:
        raise LoadError(f"{name} holds no weights; write the checkpoint with save_pretrained and name that folder")
    # Tied weights share their memory in a pickle.
    seen: set[int] = set()
    for key, value in tensors.items():
        shares = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        tensors[key] = value.clone(memory_format=torch.contiguous_format) if shares else value.contiguous()
    return tensors


def _maps(loaded: Any) -> bool:
    return isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Unsupported global" in text or "GLOBAL" in text:
        return "it asks for code to be run"
    return "it is damaged or no pickle of torch" if len(text) > 120 else f"{type(error).__name__}: {text}"
