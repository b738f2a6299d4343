"""What the name of a checkpoint stands for: a folder, a GGUF file, or a repository of the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from bild.data.places import ADAPTER, inside_folder
from bild.errors import LoadError, one_line

GGUF = ".gguf"
CONFIG = "config.json"
HUB_NAME = re.compile(
    r"(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^:@\s]+))?(:(?P<inside>[^:\s][^:]*))?", re.ASCII
)


@dataclass(frozen=True)
class Place:
    """Where the files of a checkpoint are.

    Args:
        name: as the user wrote it, for messages.
        root: a folder, or the name of a repository on the hub.
        revision: branch, tag or commit of a repository; None: its newest.
        subfolder: of a repository; of a folder it is part of the root.
        gguf: name of the GGUF file that is meant; None: the checkpoint is a folder of files.
    """

    name: str
    root: str
    revision: str | None = None
    subfolder: str = ""
    gguf: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the files are in a folder of this machine."""
        return Path(self.root).is_dir()

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' ``from_pretrained`` must know besides :attr:`root`."""
        options = {"revision": self.revision, "subfolder": self.subfolder}
        return {name: value for name, value in options.items() if value}

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint, fetched from the hub if need be; None where it has none of this name.

        Raises:
            LoadError: the hub does not answer as it should.
        """
        if self.is_local:
            local = Path(self.root) / name
            return local if local.is_file() else None
        try:
            found = cached_file(self.root, name, _raise_exceptions_for_missing_entries=False, **self.options)
        except Exception as error:  # the hub's client has many of its own
            raise not_there(self, error) from error
        return None if found is None else Path(found)


def find(name: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None) -> Place:
    """What a name stands for: ``FOLDER``, ``FILE.gguf`` or ``REPOSITORY[@REVISION][:SUBFOLDER or FILE.gguf]``.

    Args:
        name: as above; ``FOLDER:SUBFOLDER`` and ``FOLDER:FILE.gguf`` are taken too.
        revision: of a repository whose name does not say.
        subfolder: likewise, also of a folder.

    Raises:
        LoadError: a path that is not there or is no checkpoint, or a name that is none.
    """
    text = os.fspath(name)
    if not text.strip():
        raise LoadError("the name of a checkpoint is empty; give a folder or a hub name")
    if Path(text).exists():
        return _on_disk(text, Path(text), subfolder)
    if (inside := inside_folder(text)) is not None:
        return _on_disk(text, inside, None)
    parts = HUB_NAME.fullmatch(text)
    if parts is None or text.startswith((".", "/", "~")):
        raise LoadError(f"no such folder: {text}")
    return _on_hub(text, parts, revision, subfolder)


def _on_disk(name: str, path: Path, subfolder: str | None) -> Place:
    path = path / subfolder if subfolder else path
    if not path.exists():
        raise LoadError(f"no such folder: {path}")
    if not path.is_dir():
        if path.suffix.lower() != GGUF:
            raise LoadError(f"{path} is a file; give the folder of a checkpoint, or a {GGUF} file")
        return Place(name, str(path.parent), gguf=path.name)
    if not any((path / file).is_file() for file in (CONFIG, ADAPTER)):
        files = sorted(file.name for file in path.glob(f"*{GGUF}"))
        way = f"name its file {files[0]} if you mean that" if files else "give the folder of a checkpoint"
        raise LoadError(f"{path} holds no {CONFIG}; {way}")
    return Place(name, str(path))


def _on_hub(name: str, parts: re.Match[str], revision: str | None, subfolder: str | None) -> Place:
    inside = parts["inside"] if parts["inside"] else subfolder
    revision = parts["revision"] if parts["revision"] else revision
    if inside is None or not inside.lower().endswith(GGUF):
        return Place(name, parts["repository"], revision, inside.strip("/") if inside else "")
    folder, _, file = inside.rpartition("/")
    return Place(name, parts["repository"], revision, folder, gguf=file)


def not_there(place: Place, error: Exception) -> LoadError:
    """What to say when the hub cannot give what was asked for."""
    return LoadError(
        f"{place.name}: no such folder, and the hub has no such repository or cannot be reached ({one_line(error)})"
    )
