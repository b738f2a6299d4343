"""The public surface, and which room may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bild

SOURCE = Path(bild.__file__).parent
ROOMS = [
    "errors",
    "decoding",
    "machine",
    "cache",
    "data",
    "models",
    "generation",
    "training",
    "evaluation",
    "tuning",
    "reproduction",
    "cli",
]
"""A room may import itself and those before it."""


def test_public_names_are_pinned():
    assert bild.__all__ == [
        "BigLittleDecoder",
        "BildError",
        "Commit",
        "GenerationOptions",
        "InputError",
        "LoadError",
        "Pair",
        "Policy",
        "Result",
        "Stats",
        "Stream",
        "VocabularyError",
        "__version__",
        "custom_generate",
    ]
    assert all(getattr(bild, name) for name in bild.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Drafter'"):
        bild.Drafter  # noqa: B018


def test_importing_the_package_waits_for_nothing_heavy():
    code = "import bild, bild.cli, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def imports(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    place = SOURCE / room
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    below = ROOMS[: ROOMS.index(room) + 1]
    for file in files:
        ours = {name.split(".")[1] for name in imports(file) if name.startswith("bild.")}
        assert ours <= set(below), file
        if room in ("errors", "decoding"):
            assert not {name.split(".")[0] for name in imports(file)} & {"transformers", "time", "tokenizers"}, file
