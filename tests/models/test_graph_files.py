"""Compiled graphs on disk: listed, cleared, and bounded by what was not used for longest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bild.errors import InputError
from bild.models.compiled import graph_files


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three graphs of 100 bytes, the first used last."""
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    (tmp_path / "compiled").mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        graph_files.file_of(name).write_bytes(b"x" * 100)
        os.utime(graph_files.file_of(name), (0, 1_000_000 - age))
    (tmp_path / "compiled" / "notes.txt").write_text("not a graph")
    return tmp_path / "compiled"


def names() -> list[str]:
    return [graph.name for graph in graph_files.kept()]


def test_lists_the_one_last_used_first(folder):
    assert names() == ["new", "middle", "old"]
    assert [graph.bytes for graph in graph_files.kept()] == [100] * 3
    graph_files.used(graph_files.file_of("old"))
    assert names() == ["old", "new", "middle"]


def test_clears_what_it_is_told_to(folder):
    assert graph_files.clear(["middle", "another"]) == 100 and names() == ["new", "old"]
    assert graph_files.clear() == 200 and names() == []
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("limit", "left"), [(1, ["new", "middle", "old"]), (250e-9, ["new", "middle"]), (1e-9, ["old"])]
)
def test_makes_room_by_what_was_not_used_for_longest(folder, monkeypatch, limit, left):
    monkeypatch.setenv("BILD_CACHE_GB", str(limit))
    graph_files.make_room(folder, keep=graph_files.file_of("old" if left == ["old"] else "new"))
    assert names() == left


@pytest.mark.parametrize("named", ["0", "-1", "many", "nan"])
def test_a_limit_that_is_none(monkeypatch, named):
    monkeypatch.setenv("BILD_CACHE_GB", named)
    with pytest.raises(InputError, match=f"BILD_CACHE_GB is '{named}'; give a number of gigabytes above 0"):
        graph_files.limit_bytes()
