"""Checkpoints of other formats, converted once into folders that transformers reads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError

from bild.cache import cache_folder
from bild.data.json_text import from_json
from bild.errors import LoadError

UNFINISHED = "unfinished-"
SIZES = "sizes.json"
"""In a folder, beside what was made: how long each file is."""
STALE_S = 24 * 3600.0
"""Age in seconds at which an unfinished conversion belongs to a process that was killed."""
GB = 1e9


def prepared(
    name: str, sources: Iterable[Path], make: Callable[[Path], None], *, what: str, size: int, version: str = ""
) -> Path:
    """The folder that ``make`` filled from these files, now or in an earlier run.

    It is known by where the files are, how long they are and when they were written, so that a file that has changed
    is converted anew; what was made of the older one is then removed.

    Args:
        name: of the checkpoint, for messages.
        sources: the files that are converted.
        make: fills an empty folder.
        what: kind of conversion, part of the folder's name.
        size: bytes it will write, about.
        version: what else the result depends on.

    Raises:
        LoadError: it cannot be written; and whatever ``make`` raises.
    """
    files = [file.resolve() for file in sources]
    origin = _digest([what, *map(str, files)])
    state = _digest([version, *(f"{file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])
    folder = cache_folder() / "checkpoints" / f"{what}-{origin}-{state}"
    if _is_whole(folder):
        return folder
    try:
        # What somebody has removed a part of, or the system did not get to write.
        if folder.exists():
            shutil.rmtree(folder)
        _make(folder, make, size)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{name}: converting it failed in {folder.parent} ({_reason(error, size)})") from error
    for older in folder.parent.glob(f"{what}-{origin}-*"):
        if older != folder:
            shutil.rmtree(older, ignore_errors=True)
    return folder


def _make(folder: Path, make: Callable[[Path], None], size: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.parent.glob(f"{UNFINISHED}*"):
        if unfinished.stat().st_mtime < time.time() - STALE_S:
            shutil.rmtree(unfinished, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Renamed when complete: a killed conversion, or two at once, leave nothing half written.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as made:
        inside = Path(made) / folder.name
        inside.mkdir()
        make(inside)
        sizes = {file.name: file.stat().st_size for file in inside.iterdir()}
        (inside / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        try:
            os.replace(inside, folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise


def _is_whole(folder: Path) -> bool:
    """Whether all files are there, as long as they were when they were written."""
    try:
        sizes = from_json((folder / SIZES).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _reason(error: OSError | SafetensorError, size: int) -> str:
    text = " ".join(str(error).split())
    if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in text:
        return f"the disk is full; free {size / GB:.1f} GB there, or set BILD_CACHE to a folder with that much room"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else text
    return f"{reason}; set BILD_CACHE to a folder that can be written"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
