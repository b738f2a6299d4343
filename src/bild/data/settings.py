"""What a run was asked for, kept in its folder and compared when it goes on."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from bild.errors import InputError

CHUNK = 1 << 20


def claim(file: Path, settings: dict[str, Any], results: Path) -> None:
    """Write the settings of a new run, or check that a run that is there has the same.

    Args:
        file: JSON, in the folder of the run.
        settings: everything its results depend on, as plain JSON values.
        results: what such a run leaves; must not be there without its settings.

    Raises:
        InputError: the folder holds a run with other settings, or one of no known settings.
        OSError: the file cannot be written.
    """
    here = json.loads(json.dumps(settings))
    if not file.exists():
        if results.exists():
            raise InputError(f"{results} is of no known run; name another --out, or start anew with --fresh")
        file.write_text(json.dumps(here, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{file} is damaged; name another --out, or start anew with --fresh") from None
    different = differences(there, here)
    if different:
        raise InputError(
            f"{file.parent} holds a run with other settings: {'; '.join(different)}; "
            "name another --out, or start anew with --fresh"
        )


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Fields that differ between two configurations, nested ones by their path."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        inner = [differences(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [line for lines in inner for line in lines]
    return [] if there == here else [f"{name} is {json.dumps(there)} there and {json.dumps(here)} here"]


def describe_checkpoint(name: str) -> dict[str, str]:
    """A checkpoint, by what is in it where it is on disk: training writes new weights under an old name."""
    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    if not files:
        return {"name": name}
    seen = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return {"name": name, "sha256": _digest(seen)}


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of these files' bytes; sizes and times are there to read a file anew once it has changed."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]
