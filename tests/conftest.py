"""What every test runs under: no network, no progress bars, one thread, fixed random numbers."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Programs that tests start run beside other tests, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read by Inductor: a tenth of the time of a graph goes into making the calls of its kernels faster.
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"


import hypothesis
import pytest
import torch
from transformers.utils import logging

from tests.marking import NAME, Graphs
from tests.thoroughness import mark_rarely

GRAPHS = pytest.StashKey[Graphs]()
logging.disable_progress_bar()
# Tiny networks: a second thread costs more than it brings, a hundred times more on a busy machine.
torch.set_num_threads(1)


ROOT = Path(__file__).parents[1]
GRAPHS_GB = "4"
"""Room for the graphs that are kept: those of a few versions of the code that is compiled."""

# In CI every run draws the same examples; at a desk each draws others.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_configure(config: pytest.Config) -> None:
    """Graphs are kept in the checkout, or in $BILD_TEST_CACHE, so that only the first run compiles."""
    os.environ.setdefault("BILD_CACHE_GB", GRAPHS_GB)
    kept = Path(os.environ.get("BILD_TEST_CACHE", ROOT / ".pytest_cache" / "graphs"))
    kept.mkdir(parents=True, exist_ok=True)
    none = tempfile.TemporaryDirectory(prefix="bild-tests-")
    # Kernels are no graphs: compiled once for all.
    (kept / "kernels").mkdir(exist_ok=True)
    (Path(none.name) / "kernels").symlink_to(kept / "kernels", target_is_directory=True)
    config.stash[GRAPHS] = graphs = Graphs(kept, Path(none.name))
    # Processes of the collection find no graph either.
    os.environ["BILD_CACHE"] = none.name
    guard = graphs.guard()
    guard.__enter__()
    config.add_cleanup(lambda: guard.__exit__(None, None, None))
    config.add_cleanup(none.cleanup)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_rarely(items)
    # Of two processes that need one graph, one would wait for the other: what compiles comes first, all to the first
    # process, whose other tests the rest take over.
    items.sort(key=lambda item: item.get_closest_marker(NAME) is None)


def pytest_collection_finish() -> None:
    """What is there now stays to the end: looking through it again and again for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[GRAPHS].enter(item)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.config.stash[GRAPHS].leave()


@pytest.fixture(scope="session")
def graph_cache(request: pytest.FixtureRequest) -> Path:
    """Where the graphs of marked tests are."""
    return request.config.stash[GRAPHS].kept


@pytest.fixture
def fresh_cache(graph_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine that has compiled the kernels and nothing else."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "kernels").symlink_to(graph_cache / "kernels", target_is_directory=True)
    monkeypatch.setenv("BILD_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _nothing_unwritten_is_read():
    """What stands in storage that nobody has written is never a number, so that whoever reads it is found out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bild.models.cache.unwritten", lambda size, **how: torch.full(size, torch.nan, **how))
        yield


@pytest.fixture(scope="session")
def bundled():
    """The bundled pair in float32, where rounding does not decide."""
    from bild import BigLittleDecoder

    return BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager")


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Forty German sentences nobody tuned on."""
    return (Path(__file__).parent / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
