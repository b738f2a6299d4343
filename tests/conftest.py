"""What every test runs under: no network, no progress bars, one thread, fixed random numbers."""

from __future__ import annotations

import os
from pathlib import Path

# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()
# Tiny networks: a second thread costs more than it brings, a hundred times more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bundled():
    """The bundled pair in float32, where rounding does not decide."""
    from bild import BigLittleDecoder

    return BigLittleDecoder.from_pretrained(dtype="float32")


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Forty German sentences nobody tuned on."""
    return (Path(__file__).parent / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
