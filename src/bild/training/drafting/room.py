"""Whether a run has room on disk, before hours of it are lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bild.errors import InputError

STATES = 8
"""How many times the weights in float32 are on disk at most: two states with their optimizers, and two results."""


def check_room(folder: Path, parameters: int) -> None:
    """Whether there is room for the states of a run.

    Args:
        folder: of the run.
        parameters: of what is trained.

    Raises:
        InputError: there is not.
    """
    needed, free = STATES * parameters * torch.float32.itemsize, shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"training needs about {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free; make room and "
            "run the same command again: it goes on"
        )
