"""Environments of the peers whose pins conflict with ours: made once, with pip, below the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bild import cache
from bild.errors import LoadError

REQUIREMENTS = Path(__file__).parent / "requirements"
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that would lead another environment's Python to our packages."""


def cache_folder() -> Path:
    """Where environments and converted models are kept: ``$BILD_CACHE`` or ``~/.cache/bild``, then ``peers``."""
    return cache.cache_folder() / "peers"


def prepare_environment(name: str) -> Path:
    """The Python of a peer's environment, which is made if it is not there yet.

    Args:
        name: of a file in ``requirements``, without ``.txt``.

    Raises:
        LoadError: an installation that failed, and why.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / "environments" / f"{name}-py{version}-{digest(requirements.read_bytes())}"
    if not folder.is_dir():
        print(f"{name}: installing its own environment into {folder} (once, a few minutes)", file=sys.stderr)
        with building(folder) as place:
            _install(requirements, place)
    return _python(folder)


def digest(content: bytes) -> str:
    """Ten characters that stand for this content."""
    return hashlib.sha256(content).hexdigest()[:10]


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A place to build a folder in, renamed to it when done: what is there is complete, whoever was killed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield place
        if not folder.is_dir():
            place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def clean_variables() -> dict[str, str]:
    """Our environment variables without those that lead to our packages."""
    return {key: value for key, value in os.environ.items() if key not in FOREIGN}


def _install(requirements: Path, place: Path) -> None:
    try:
        venv.create(place, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LoadError(f"no environment could be made ({error}); is python's venv complete?") from None
    # torch's own requirements differ from machine to machine; the others are pinned and complete without them
    # (and without torchvision, which optimum-intel names, text does not need, and another index's torch breaks).
    _pip(place, "-c", str(requirements), "torch")
    _pip(place, "--no-deps", "-r", str(requirements))


def _pip(place: Path, *arguments: str) -> None:
    command = [str(_python(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=clean_variables())
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = lines[-1] if lines else f"pip ended with {done.returncode}"
        raise LoadError(f"its environment cannot be installed ({why})")


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
