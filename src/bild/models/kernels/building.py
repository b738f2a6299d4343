"""Compile the kernels at first use, keep them on disk, load them.

The file's name holds all that the result depends on: the source, the flags and torch's version.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from bild.cache import cache_folder
from bild.errors import one_line
from bild.models.instructions import has_instructions

logger = logging.getLogger("bild")

SOURCES = [Path(__file__).with_name(f"{name}.cpp") for name in ("attention", "bf16_linear", "int8_linear", "threads")]
HEADERS = [Path(__file__).with_name(f"{name}.h") for name in ("common", "tiles")]
FLAGS = (
    *("-O3", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
)
LONGEST_S = 300.0
"""Seconds after which a compiler is taken for stuck; it needs ten."""
DIGEST_BYTES = hashlib.sha256().digest_size


def is_supported() -> bool:
    """Whether this processor has the instructions of the kernels."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and has_instructions("avx512", "vnni")


@cache
def is_loaded() -> bool:
    """Whether the kernels can be called; compiles and loads them the first time, and says why where it cannot."""
    if not is_supported():
        return False
    if _is_registered():
        # A second copy from another place would end the process: an operator has one definition.
        return True
    try:
        _load(library_file())
    except Exception as error:  # no compiler, no room, no right to write: a slower way, and no lost text
        logger.warning("torch's own kernels are used: bild's cannot be compiled here (%s)", one_line(error))
        return False
    return True


def _is_registered() -> bool:
    return any(name.startswith("bild::bild_int8_linear") for name in torch._C._dispatch_get_all_op_names())


def _load(file: Path) -> None:
    if not _is_whole(file):
        _compile(file)
    # For all to see: compiled graphs call them by name.
    ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _is_whole(file: Path) -> bool:
    """Whether a file ends in the digest of the rest; loading one that was cut off would end the process."""
    if not file.exists():
        return False
    content = file.read_bytes()
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def library_file() -> Path:
    """Where the compiled kernels are kept."""
    return cache_folder() / "kernels" / f"kernels-{digest()}.so"


@cache
def digest() -> str:
    """A name for the kernels as they are compiled here."""
    sources = [file.read_text(encoding="utf-8") for file in (*HEADERS, *SOURCES)]
    parts = (*sources, " ".join(FLAGS), torch.__version__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(file: Path) -> None:
    # Only where something is to be compiled: importing Inductor takes a second.
    from torch._inductor.cpp_builder import get_cpp_compiler

    file.parent.mkdir(parents=True, exist_ok=True)
    root = Path(torch.__file__).parent
    # Renamed when complete: a killed compilation, or two at once, leave nothing half written.
    with tempfile.TemporaryDirectory(prefix="tmp", dir=file.parent) as folder:
        unfinished = Path(folder) / file.name
        places = [f"-I{root / 'include'}", *map(str, SOURCES), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
        command = [get_cpp_compiler(), *FLAGS, *places, "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
        # A library may end in anything.
        unfinished.write_bytes((content := unfinished.read_bytes()) + hashlib.sha256(content).digest())
        os.replace(unfinished, file)
