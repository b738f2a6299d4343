"""Where results go: files; stdout and stderr, whatever they are: a pipe that closes, a full disk, a terminal that knows
ASCII only."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from bild.data.json_text import to_json
from bild.errors import InputError, writing


def prepare_streams() -> None:
    """Let every text be written: what a stream's encoding lacks comes out as ``\\xe4`` or ``\\u2028``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_line(text: str) -> None:
    """Write a line to stdout, now.

    Raises:
        InputError: stdout cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    with writing("stdout"):
        if sys.stdout is None:  # closed by the shell: print would write nothing, and say nothing
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, flush=True)


def print_json(value: Any) -> None:
    """Write a value to stdout as one line of JSON, in ASCII where stdout takes no more.

    Raises as :func:`print_line`.
    """
    print_line(to_json(value, ascii=not _is_unicode(sys.stdout)))


def check_file(name: str, file: Path) -> None:
    """Refuse a file that could not be written, before hours of work are lost in it; its folder is made if need be.

    Args:
        name: of the option.
        file: where results are to go.

    Raises:
        InputError: a folder, a device, or a place without the right to write.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if (file.exists() and not file.is_file()) or not os.access(file.parent, os.W_OK):
        raise InputError(f"{name} is {file}, which cannot be written; name a file in a folder that can")


def lacks(text: str) -> bool:
    """Whether a text holds characters that stdout cannot show as they are."""
    if sys.stdout is None or _is_unicode(sys.stdout) or text.isascii():
        return False
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return True
    return False


def finish() -> int:
    """Flush both streams, and leave none that Python would complain about when it flushes them at its end.

    Returns:
        0, the exit code of a program whose results were written.

    Raises:
        InputError: stdout cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        if sys.stdout is not None:
            with writing("stdout"):
                sys.stdout.flush()
        return 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_if_broken(stream)


def _drop_if_broken(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _is_unicode(stream: TextIO | None) -> bool:
    encoding = getattr(stream, "encoding", None)
    return encoding is None or encoding.lower().replace("_", "-").startswith("utf")
