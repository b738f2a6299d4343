"""What a model is loaded from: folders and hub names, GGUF files, pickled and quantised weights, adapters.

Behind these functions nobody asks. :mod:`.place` reads names, :mod:`.checkpoint` loads what they stand for,
:mod:`.outline` says what is wrong with a pair before a weight is read.
"""

from bild.models.loading.checkpoint import load_config, load_network, new_network
from bild.models.loading.hardware import DTYPES, INT4, INT8, ROUNDED, resolve_device, resolve_dtype
from bild.models.loading.kinds import check_part
from bild.models.loading.outline import Outline, check_exit, check_kinds, check_outlines, read_outline
from bild.models.loading.tokenizer import load_tokenizer
from bild.models.loading.vocabulary import check_shared_vocabulary, head_size

__all__ = [
    "DTYPES",
    "INT4",
    "INT8",
    "ROUNDED",
    "Outline",
    "check_exit",
    "check_kinds",
    "check_outlines",
    "check_part",
    "check_shared_vocabulary",
    "head_size",
    "load_config",
    "load_network",
    "load_tokenizer",
    "new_network",
    "read_outline",
    "resolve_device",
    "resolve_dtype",
]
