"""The tokenizer of a checkpoint, and what to install where its kind needs a package."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bild.data.places import ADAPTER
from bild.errors import LoadError
from bild.models.loading import gguf
from bild.models.loading.checkpoint import open_source, read
from bild.models.loading.place import Place, find

FILES = ("tokenizer.json", "*.model", "*.spm", "vocab*", "tekken.json")
PACKAGES = (
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "sacremoses",
    "mistral_common",
    "jieba",
    "rjieba",
    "fugashi",
    "ftfy",
)
"""What tokenizers of one architecture or another are written in, as their errors spell it."""
MODULES = {"protobuf": "google.protobuf"}
NEEDED_BY = {"*.spm": "sentencepiece", "*.model": "sentencepiece", "tekken.json": "mistral_common"}
"""Packages that read a file, in case the error names none."""


def load_tokenizer(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, or None for a folder without one (then only token ids can be decoded).

    Args:
        name: a folder, a GGUF file or a name on the hub, see :func:`~bild.models.loading.place.find`; a folder that
            holds nothing but a tokenizer is taken too.
        revision: of a hub repository whose name does not say.
        subfolder: of a folder or repository, likewise.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        LoadError: a tokenizer that cannot be read, or needs a package that is not installed.
    """
    place = _place(name, revision, subfolder)
    # transformers invents a tokenizer of special tokens for a folder that has none.
    if place.is_local and not _holds_tokenizer(Path(place.root)):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = read(AutoTokenizer, place, trust_remote_code=trust_remote_code)
    except LoadError as error:
        package = _missing_package(place, error)
        if package is None:
            raise
        raise LoadError(
            f"{place.name}: its tokenizer needs the package {package}, which is not installed; "
            f"run pip install {package.replace('_', '-')}"
        ) from error
    return tokenizer


def _place(name: str | os.PathLike[str], revision: str | None, subfolder: str | None) -> Place:
    folder = Path(name) / subfolder if subfolder else Path(name)
    if folder.is_dir() and _holds_tokenizer(folder):
        return Place(os.fspath(name), str(folder))
    place = find(name, revision=revision, subfolder=subfolder)
    if place.gguf:
        return gguf.outline(place)
    # An adapter that added no tokens brings no tokenizer.
    brings_none = not place.is_local and place.file("tokenizer_config.json") is None
    if place.file(ADAPTER) is not None and (place.is_local or brings_none):
        return open_source(name, revision=revision, subfolder=subfolder).folder
    return place


def _holds_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in FILES)


def _missing_package(place: Place, error: LoadError) -> str | None:
    """The package an error speaks of, if it is one for tokenizers and not installed."""
    causes, cause = [str(error)], error.__cause__
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__ if cause.__cause__ is not None else cause.__context__
    text = " ".join(causes).lower().replace("-", "_")
    named = [package for package in PACKAGES if re.search(rf"\b{package}\b", text)]
    of_files = [each for pattern, each in NEEDED_BY.items() if place.is_local and any(Path(place.root).glob(pattern))]
    missing = [package for package in [*named, *of_files] if not _is_installed(package)]
    return missing[0] if missing else None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(MODULES.get(package, package)) is not None
    except ModuleNotFoundError:
        return False
