"""The folder of a run belongs to one process."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from bild.data import claim
from bild.data.files import create_whole
from bild.data.holding import hold
from bild.errors import InputError
from bild.evaluation.folder import Folder

OTHER = """
import sys
from pathlib import Path
from bild.data import claim
held = claim(Path(sys.argv[1]), {"a": 1}, Path(sys.argv[1]).with_name("results"))
print("held" if held else "free", flush=True)
sys.stdin.read()
"""


def other(file: Path) -> subprocess.Popen:
    """Another process at the same run."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_another_process_is_refused_until_the_first_has_ended(tmp_path):
    file, results = tmp_path / "run.json", tmp_path / "results"
    process = other(file)
    assert process.stdout.readline() == "held\n"
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"is being written by another process; wait .* or name another --out"):
            Folder(tmp_path, {"a": 1}, fresh=fresh)
    assert file.exists()
    with pytest.raises(InputError, match="holds a run with other settings"):
        claim(file, {"a": 2}, results)
    # Killed, it holds nothing any more.
    process.kill()
    process.communicate()
    held = claim(file, {"a": 1}, results)
    # This process may go on with its own run as often as it likes.
    assert held is not None and claim(file, {"a": 1}, results) is held
    del held
    gc.collect()
    process = other(file)
    assert process.stdout.readline() == "held\n"
    process.communicate("")


def test_where_nothing_can_be_locked_the_run_goes_on(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "run.json").write_text("{}")
    assert hold(tmp_path / "run.json") is None


def _create(file: Path, text: str) -> bool:
    try:
        create_whole(file, text)
    except FileExistsError:
        return False
    return True


def test_of_processes_that_create_a_file_at_once_one_does(tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        made = pool.starmap(_create, [(tmp_path / "run.json", f"{at}" * 1000) for at in range(8)])
    assert sum(made) == 1
    assert (tmp_path / "run.json").read_text() == f"{made.index(True)}" * 1000
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]
