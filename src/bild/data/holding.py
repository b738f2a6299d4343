"""A run's folder belongs to one process at a time: two that write one file lose lines of each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from bild.errors import InputError


class Held:
    """A file that no other process can hold for as long as this object, and this process, lives; a kill lets it go."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened

    def __del__(self) -> None:
        self._opened.close()


_held: WeakValueDictionary[tuple[int, int], Held] = WeakValueDictionary()


def hold(file: Path) -> Held | None:
    """Hold the settings of a run, which stand for its folder.

    Args:
        file: that is there.

    Returns:
        What is to be kept while the run goes on, the same where this process holds the file already; None where nothing
        can be locked.

    Raises:
        InputError: another process holds it.
        OSError: it cannot be opened.
    """
    opened = file.open("rb")
    status = os.fstat(opened.fileno())
    place = status.st_dev, status.st_ino
    if (known := _held.get(place)) is not None:
        opened.close()
        return known
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        raise InputError(
            f"{file.parent} is being written by another process; wait until it has ended, or name another --out"
        ) from None
    except (ImportError, OSError):  # no such system, or a disk that is far away
        opened.close()
        return None
    held = _held[place] = Held(opened)
    return held
