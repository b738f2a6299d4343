"""The built wheel: what an installation needs is in it, and runs from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bild import Pair
from bild.generation import bundled_pair

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of this checkout, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("bild-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_it(installed):
    source = ROOT / "src" / "bild"
    files = {file.relative_to(source) for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    there = {file.relative_to(installed / "bild") for file in (installed / "bild").rglob("*") if file.is_file()}
    assert files <= there and Path("py.typed") in there
    assert {file.parts[0] for file in there - files} == {"bundled"}


def test_the_bundled_pair_is_the_one_of_the_checkout(installed):
    bundled, own = installed / "bild" / "bundled" / "de-en", ROOT / "models" / "de-en"
    pair = Pair.load(bundled)
    assert pair.policy == Pair.load(own).policy
    for name in ("large", "small"):
        checkpoint = Path(getattr(pair, name))
        assert checkpoint.is_relative_to(bundled)
        weights = checkpoint.relative_to(bundled) / "model.safetensors"
        assert (bundled / weights).read_bytes() == (own / weights).read_bytes()


def test_the_program_runs_from_it(installed, tmp_path):
    """Away from the checkout, whose folder of models it may not find."""
    code = "from bild.generation import bundled_pair; print(bundled_pair()); from bild.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "Wie spät ist es?", "--runtime", "eager", "--dtype", "float32"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    expected = f"{installed / 'bild' / 'bundled' / 'de-en'}\nWhat time is it?\n"
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
    assert not bundled_pair().is_relative_to(installed)


def test_the_metadata_name_the_program_and_what_it_needs(installed):
    (metadata,) = installed.glob("bild-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Requires-Dist: sentencepiece>=" in text and "Requires-Dist: transformers<" in text
    entry_points = (metadata.parent / "entry_points.txt").read_text(encoding="utf-8")
    assert "bild = bild.cli:main" in entry_points
