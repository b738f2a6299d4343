"""Files that are written whole or not at all, and the settings of runs, which are."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bild import InputError, Pair
from bild.data.files import write_whole
from bild.data.settings import claim


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files may be so many bytes long."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_there_is_no_room_for_leaves_the_one_before(tmp_path):
    file, link = tmp_path / "a.json", tmp_path / "b.json"
    write_whole(file, "one")
    os.chmod(file, 0o640)
    link.symlink_to(file)
    with room(100), pytest.raises(OSError, match="File too large"):
        write_whole(link, "x" * 200)
    assert file.read_text() == "one" and sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]
    write_whole(link, "other")
    assert link.is_symlink() and file.read_text() == "other" and file.stat().st_mode & 0o777 == 0o640


def test_a_pair_that_there_is_no_room_for_leaves_the_one_before(tmp_path):
    Pair("large", "small", evidence={"found": "x" * 100}).save(tmp_path)
    before = (tmp_path / "bild.json").read_bytes()
    with room(100), pytest.raises(InputError, match=r"cannot write .*bild\.json \(File too large\)"):
        Pair("large", "other").save(tmp_path)
    assert (tmp_path / "bild.json").read_bytes() == before


def test_a_run_that_ended_before_it_began_begins(tmp_path):
    file, results = tmp_path / "run.json", tmp_path / "outputs.jsonl"
    with room(10), pytest.raises(InputError, match="File too large"):
        claim(file, {"large": "a" * 100}, results)
    assert not file.exists()
    # As a kill, or another program, leaves it.
    for damaged in ("", '{"large": "a', "[]", '"x"', "3", "null"):
        file.write_text(damaged)
        claim(file, {"large": "a"}, results)
        assert json.loads(file.read_text()) == {"large": "a"}
    results.write_text("{}\n")
    for damaged in ("", "[]"):
        file.write_text(damaged)
        with pytest.raises(InputError, match=r"run\.json is damaged"):
            claim(file, {"large": "a"}, results)
