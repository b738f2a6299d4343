"""Where bild keeps what it has prepared on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """``$BILD_CACHE``, else ``~/.cache/bild``; where neither is named and the home cannot be used, a temporary folder.

    Containers often run under a user id that has no name, no home, or a home that belongs to somebody else.
    """
    named = os.environ.get("BILD_CACHE")
    if named:
        return Path(named)
    try:
        folder = Path.home() / ".cache" / "bild"
    except RuntimeError:  # no HOME, and an id without a name
        return _temporary()
    return folder if folder.is_dir() or _can_be_made(folder) else _temporary()


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Of several processes and threads that make the same file one is inside, the others wait; whoever comes in looks
    whether the file is there by now. Where nothing can be locked, each makes it.

    Args:
        file: what is made; its folder is made if need be.

    Raises:
        OSError: nothing can be written there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_suffix(".lock")
    with lock.open("w") as held:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _can_be_made(folder: Path) -> bool:
    nearest = next(parent for parent in folder.parents if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@cache
def _temporary() -> Path:
    """The same for every process of this user, unless somebody else has taken its name: graphs in it are run."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"bild-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != user or status.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix="bild-"))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="bild-"))
    return folder
