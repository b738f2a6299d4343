"""Libraries of our own in C++: compiled at first use, kept on disk, loaded.

A file's name holds all that the result depends on: the sources, the flags and torch's version.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch

from bild.cache import cache_folder, one_at_a_time
from bild.errors import one_line

logger = logging.getLogger("bild")

FLAGS = ("-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
LONGEST_S = 300.0
"""Seconds after which a compiler is taken for stuck; it needs ten."""
DIGEST_BYTES = hashlib.sha256().digest_size


class Library:
    """C++ sources that define torch operators.

    Args:
        name: how its file begins.
        sources: what is compiled.
        headers: what the sources include besides torch's.
        flags: of the compiler, besides :data:`FLAGS`.
        operator: one that it defines, without ``bild::``; where that is known the library is loaded already.
    """

    def __init__(
        self, name: str, sources: Sequence[Path], headers: Sequence[Path], flags: Sequence[str], operator: str
    ) -> None:
        self.name, self.sources, self.headers, self.operator = name, sources, headers, operator
        self.flags = (*FLAGS, *flags)

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return cache_folder() / "kernels" / f"{self.name}-{self.digest}.so"

    @cached_property
    def digest(self) -> str:
        """A name for it as it is compiled here."""
        sources = [file.read_text(encoding="utf-8") for file in (*self.headers, *self.sources)]
        parts = (*sources, " ".join(self.flags), torch.__version__)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def is_registered(self) -> bool:
        """Whether this process knows its operators: a second copy would end the process."""
        return any(name.startswith(f"bild::{self.operator}") for name in torch._C._dispatch_get_all_op_names())

    def can_load(self, level: int, otherwise: str) -> bool:
        """Whether its operators are there; compiles and loads it if need be.

        Args:
            level: at which it is logged that it cannot be had.
            otherwise: what that means.
        """
        if self.is_registered:
            return True
        try:
            self.load()
        except Exception as error:  # no compiler, no room, no right to write: a slower way, and no lost text
            logger.log(level, "%s cannot be compiled here (%s)", otherwise, one_line(error))
            return False
        return True

    def load(self) -> None:
        """Compile it unless it is there, and load it.

        Raises:
            Exception: no compiler, one that fails, no room, or no right to write.
        """
        if not _is_whole(self.file):
            with one_at_a_time(self.file):
                if not _is_whole(self.file):
                    self._compile(self.file)
        # For all to see: compiled graphs call what it defines by name.
        ctypes.CDLL(str(self.file), mode=ctypes.RTLD_GLOBAL)

    def _compile(self, file: Path) -> None:
        # Only where something is to be compiled: importing Inductor takes a second.
        from torch._inductor.cpp_builder import get_cpp_compiler

        root = Path(torch.__file__).parent
        # Renamed when complete: a killed compilation leaves nothing half written.
        with tempfile.TemporaryDirectory(prefix="tmp", dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            objects = [Path(folder) / f"{source.stem}.o" for source in self.sources]
            compiler = [get_cpp_compiler(), *self.flags]
            commands = [
                [*compiler, f"-I{root / 'include'}", "-c", str(source), "-o", str(result)]
                for source, result in zip(self.sources, objects, strict=True)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, commands))
            libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
            _run([*compiler, *map(str, objects), *libraries, "-o", str(unfinished)])
            # A library may end in anything.
            unfinished.write_bytes((content := unfinished.read_bytes()) + hashlib.sha256(content).digest())
            os.replace(unfinished, file)


def _run(command: list[str]) -> None:
    """A compiler's command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")


def _is_whole(file: Path) -> bool:
    """Whether a file ends in the digest of the rest; loading one that was cut off would end the process."""
    if not file.exists():
        return False
    content = file.read_bytes()
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]
