"""What a run was asked for, kept in its folder and compared when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from bild.data.files import create_whole, write_whole
from bild.data.holding import Held, hold
from bild.data.json_text import from_json, to_json
from bild.data.places import ADAPTER, ENSEMBLE, beside, inside_folder
from bild.errors import InputError, reading, writing

DEFAULT_MAX_NEW_TOKENS = 256
"""Longest text in tokens where neither the user nor the checkpoint says otherwise."""


def claim(
    file: Path, settings: dict[str, Any], results: Path, *, clear: Callable[[], None] | None = None
) -> Held | None:
    """Write the settings of a new run, or check that a run that is there has the same; and hold them, so that no other
    process goes on with it.

    Args:
        file: JSON, in the folder of the run.
        settings: everything its results depend on, as plain JSON values.
        results: what such a run leaves; must not be there without its settings.
        clear: removes what an earlier run left, its settings too, before a new one begins; None: it goes on.

    Returns:
        What is to be kept while the run goes on, see :func:`~bild.data.holding.hold`.

    Raises:
        InputError: the folder holds a run with other settings, or one of no known settings, or one that another process
            is at; or the file cannot be read or written.
    """
    if clear is not None:
        with reading(file):
            held = hold(file) if file.exists() else None
        clear()
        del held
    here = json.loads(json.dumps(settings))
    text, there = to_json(here, indent=2) + "\n", None
    if not file.exists() and not results.exists():
        with writing(file), suppress(FileExistsError):
            create_whole(file, text)
    is_there = file.exists()
    try:
        if is_there:
            with reading(file):
                there = from_json(file.read_bytes())
                there = there if isinstance(there, dict) else None
    except InputError:
        raise
    except ValueError:  # damaged: nothing is lost where nothing was done
        pass
    if there is None:
        if results.exists():
            why = f"{file} is damaged" if is_there else f"{results} is of no known run"
            raise InputError(f"{why}; name another --out, or start anew with --fresh")
        with writing(file):
            write_whole(file, text)
    elif different := differences(there, here):
        raise InputError(
            f"{file.parent} holds a run with other settings: {'; '.join(different)}; "
            "name another --out, or start anew with --fresh"
        )
    with reading(file):
        return hold(file)


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Fields that differ between two configurations, nested ones by their path."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        inner = [differences(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [line for lines in inner for line in lines]
    return [] if there == here else [f"{name} is {to_json(there)} there and {to_json(here)} here"]


def describe_pair(
    large: str,
    small: str | None,
    middle: str | None = None,
    *,
    middle_window: int | None = None,
    drafter: str = "small",
) -> dict[str, Any]:
    """The checkpoints, by side; None where there is no small one, and no word of a middle one where there is none, or
    of a drafter that is the small one.

    Args:
        large: folder, file or hub name.
        small: likewise.
        middle: likewise.
        middle_window: longest draft that the middle model is given.
        drafter: who drafts.
    """
    told: dict[str, Any] = {
        "large": describe_checkpoint(large),
        "small": None if small is None else describe_checkpoint(small),
    }
    if middle is not None:
        told |= {"middle": describe_checkpoint(middle), "middle_window": middle_window}
    if drafter != "small":
        # Only here: it brings torch.
        from bild.decoding.drafters.recipe import parse_drafter

        told["drafter"] = drafter
        if files := parse_drafter(drafter).files:
            told["counts"] = _digest_of([Path(file) for file in files])
    return told


def describe_checkpoint(name: str) -> dict[str, str]:
    """A checkpoint, by what is in it where it is on disk: training writes new weights under an old name."""
    digest = checkpoint_digest(name)
    return {"name": name} if digest is None else {"name": name, "sha256": digest}


DECISIVE = (
    *("*.safetensors", "*.bin", "*.gguf"),
    *("config.json", "generation_config.json", ADAPTER, "short_list.json"),
    *("*token*.json", "vocab*", "merges.txt", "*.model", "*.spm", "chat_template*"),
)
"""Files of a checkpoint that hold weights, or decide in some other way about what it writes."""


def checkpoint_digest(name: str) -> str | None:
    """SHA-256 of what decides about a checkpoint's texts, as 16 hexadecimal digits; None of a hub name.

    Args:
        name: as a checkpoint is named, or an ensemble of several; an adapter counts with its base model.
    """
    files = _decisive_files(name)
    return _digest_of(files) if files else None


def _decisive_files(name: str) -> list[Path]:
    if name.startswith(ENSEMBLE):
        members = [part.partition("=")[2] for part in name.removeprefix(ENSEMBLE).split(",")]
        return [file for member in members for file in _decisive_files(member)]
    place = Path(name)
    if not place.exists():
        place = inside_folder(name) or place
    if place.is_file():
        return [place]
    found = {file for kind in DECISIVE for file in place.glob(kind) if file.is_file()}
    return [*sorted(found), *_files_of_base(place)]


def _files_of_base(folder: Path) -> list[Path]:
    """Of the model that an adapter changes."""
    try:
        base = from_json((folder / ADAPTER).read_bytes())["base_model_name_or_path"]
        place = beside(base, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [] if Path(place).resolve() == folder.resolve() else _decisive_files(place)


def _digest_of(files: Sequence[Path]) -> str:
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of these files; sizes and times are there to read a file anew once it has changed."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
