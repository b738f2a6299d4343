"""What names of checkpoints stand for on this disk, for whoever loads them and whoever tells one from another."""

from __future__ import annotations

from pathlib import Path

ENSEMBLE = "ensemble:"
"""How a model begins that others steer."""
ADAPTER = "adapter_config.json"


def inside_folder(name: str) -> Path | None:
    """What ``FOLDER:INSIDE`` names; None where the folder is not there, or nothing stands behind it."""
    folder, colon, inside = name.rpartition(":")
    return Path(folder) / inside if colon and inside and Path(folder).is_dir() else None


def beside(base: str, folder: Path) -> str:
    """The base model of an adapter: taken from where the program runs, as PEFT does, or else from its folder."""
    return str(folder / base) if not Path(base).exists() and (folder / base).exists() else base
