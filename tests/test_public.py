"""The public surface, and which room may know which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
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
    "engine",
    "edge",
    "generation",
    "training",
    "evaluation",
    "tuning",
    "reproduction",
    "serving",
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


def test_the_order_of_the_rooms_is_the_one_contributors_are_told():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = text[text.index("Imports run one way:") : text.index("a test enforces")]
    assert re.findall(r"`(\w+)`", told) == ROOMS


def at_run_time(file: Path) -> set[str]:
    """Modules of ours that a file imports when it is imported, by their full name."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_files_import_each_other_in_a_circle():
    files = {
        ".".join(("bild", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in SOURCE.rglob("*.py")
    }
    graph = {name: at_run_time(file) & files.keys() - {name} for name, file in files.items()}
    # Raises where there is a circle. A package stands for what its files bring, so a file may name its own.
    order = TopologicalSorter({n: {t for t in to if not n.startswith(f"{t}.")} for n, to in graph.items()})
    assert set(order.static_order()) >= set(files)
