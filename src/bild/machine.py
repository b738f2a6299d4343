"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bild

PACKAGES = ("torch", "transformers", "sacrebleu", "rouge-score", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions, commit and date, as plain JSON values."""
    import torch

    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str | None]:
    """Versions of bild and of what its figures depend on."""
    return {"bild": bild.__version__, **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the checkout bild runs from, with ``+`` where it was changed; None for an installed one."""
    package = Path(bild.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # Installed into somebody's environment, the repository around it is not bild's.
    if top is None or Path(top) / "src" / "bild" != package:
        return None
    commit = _git(package, "rev-parse", "--short", "HEAD")
    return commit if commit is None else commit + ("+" if _git(package, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
