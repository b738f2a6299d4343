"""Where prepared graphs and converted checkpoints are kept."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from bild import cache


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path) -> Path:
    monkeypatch.delenv("BILD_CACHE")
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    cache._temporary.cache_clear()
    yield tmp_path
    cache._temporary.cache_clear()


def unknown(user: int):
    raise KeyError(f"getpwuid(): uid not found: {user}")


def test_the_folder_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "named"))
    assert cache.cache_folder() == tmp_path / "named"


def test_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "bild"


def test_a_user_without_name_and_home(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    folder = cache.cache_folder()
    assert folder == tmp_path / "tmp" / f"bild-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache.cache_folder() == folder


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cache.os, "access", lambda place, mode: Path(place) != home)
    assert cache.cache_folder().parent == tmp_path / "tmp"
    (home / ".cache" / "bild").mkdir(parents=True)
    assert cache.cache_folder() == home / ".cache" / "bild"


def test_a_temporary_folder_that_somebody_else_has(monkeypatch, tmp_path):
    """Graphs in it are loaded as code."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    taken = tmp_path / "tmp" / f"bild-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    assert cache.cache_folder() != taken
