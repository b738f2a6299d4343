"""What every test runs under: no network, no progress bars, one thread, fixed random numbers."""

from __future__ import annotations

import os
from pathlib import Path

# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from unittest.mock import patch

import pytest
import torch
from transformers.utils import logging

from bild.models.compiled import compiling

logging.disable_progress_bar()
# Tiny networks: a second thread costs more than it brings, a hundred times more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory) -> Path:
    """Where graphs are compiled to: the run's own folder, or $BILD_TEST_CACHE to keep them between runs."""
    kept, base = os.environ.get("BILD_TEST_CACHE"), tmp_path_factory.getbasetemp()
    # Workers of one run share what any of them compiles.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(kept) if kept else run / "graphs"
    folder.mkdir(exist_ok=True)
    os.environ["BILD_CACHE"] = str(folder)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-compile", action="store_true", help="skip a test where it would compile a graph")


@pytest.fixture(scope="session", autouse=True)
def _no_compile(request: pytest.FixtureRequest):
    """Compiling takes half a minute a graph, so a run against another version of transformers goes without."""
    if not request.config.getoption("--no-compile"):
        yield
        return
    with patch.object(compiling, "_compile", lambda *_: pytest.skip("this test would compile")):
        yield


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bundled():
    """The bundled pair in float32, where rounding does not decide."""
    from bild import BigLittleDecoder

    return BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager")


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Forty German sentences nobody tuned on."""
    return (Path(__file__).parent / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
