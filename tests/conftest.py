"""What every test runs under: no network, no progress bars, fixed random numbers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    torch.manual_seed(0)
