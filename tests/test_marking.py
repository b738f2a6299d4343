"""An unmarked test finds no compiled graph, and fails where it would make or read one."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from bild.models.compiled import compiling
from tests.marking import NAME, Graphs

Failed = pytest.fail.Exception


@pytest.fixture
def graphs(tmp_path, monkeypatch) -> Graphs:
    monkeypatch.setenv("BILD_CACHE", os.environ["BILD_CACHE"])
    return Graphs(tmp_path / "kept", tmp_path / "none")


def test_of(marked: bool) -> Any:
    return SimpleNamespace(get_closest_marker=lambda name: object() if marked and name == NAME else None)


test_of.__test__ = False


def test_only_marked_tests_see_what_was_compiled(graphs, tmp_path):
    graphs.enter(test_of(marked=True))
    assert os.environ["BILD_CACHE"] == str(tmp_path / "kept")
    graphs.enter(test_of(marked=False))
    assert os.environ["BILD_CACHE"] == str(tmp_path / "none")


def test_an_unmarked_test_fails_where_it_would_compile(graphs):
    compile_graph = graphs.guarded(lambda: "compiled")
    graphs.enter(test_of(marked=False))
    with pytest.raises(Failed, match="mark it with"):
        compile_graph()
    graphs.enter(test_of(marked=True))
    assert compile_graph() == "compiled"


def test_this_test_may_not_compile():
    for guarded in (compiling._compile, compiling._load):
        with pytest.raises(Failed, match="this test compiles a graph"):
            guarded()


def test_an_unmarked_test_fails_where_a_process_of_its_compiled(graphs, tmp_path):
    (tmp_path / "none" / "compiled").mkdir(parents=True)
    graphs.enter(test_of(marked=False))
    graphs.leave()
    (tmp_path / "none" / "compiled" / "graph.pt2").write_bytes(b"")
    with pytest.raises(Failed, match="mark it"):
        graphs.leave()
    graphs.leave()
