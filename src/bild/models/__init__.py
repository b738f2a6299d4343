"""What runs a network behind the Scorer contract; the only place that knows transformers' caches.

:mod:`.protocol` says what a model is. :mod:`.eager` and :mod:`.compiled` run a whole network, :mod:`.early_exit` one
that is cut in two, :mod:`.one_encoder` two that read a source once. All of them store what they have read as
:mod:`.cache` says, and run transformers' modules as :mod:`.seams` and :mod:`.passes` say. :mod:`.calm`, whose tokens
leave early, and :mod:`.byte_latent`, which thinks in patches of bytes, read :mod:`.single_rows`.
"""

from bild.models.calm import CalmModel, CalmScorer, ExitRule
from bild.models.classifier import Classifier
from bild.models.compiled import CompiledModel, CompiledScorer, is_prepared
from bild.models.eager import EagerModel, EagerScorer
from bild.models.early_exit import exit_layer
from bild.models.ensemble import EnsembleModel, EnsembleScorer, OtherSource
from bild.models.int4 import Int4Linear, check_int4, to_int4
from bild.models.int8 import Int8Linear, to_int8
from bild.models.joined import reads_states
from bild.models.loading import (
    INT4,
    INT8,
    ROUNDED,
    check_exit,
    check_kinds,
    check_outlines,
    check_part,
    check_shared_vocabulary,
    head_size,
    load_config,
    load_network,
    load_tokenizer,
    new_network,
    read_outline,
    resolve_device,
    resolve_dtype,
)
from bild.models.middle import run_three
from bild.models.one_encoder import borrows_encoder
from bild.models.pairing import check_runtime, check_writes_alone, is_part, run_pair
from bild.models.positions import max_positions
from bild.models.protocol import Model
from bild.models.rounded import round_weights, rounded_format
from bild.models.short_list import read_short_list, short_list_of, shorten, write_short_list

__all__ = [
    "INT4",
    "INT8",
    "ROUNDED",
    "CalmModel",
    "CalmScorer",
    "Classifier",
    "CompiledModel",
    "CompiledScorer",
    "EagerModel",
    "EagerScorer",
    "EnsembleModel",
    "EnsembleScorer",
    "ExitRule",
    "Int4Linear",
    "Int8Linear",
    "Model",
    "OtherSource",
    "borrows_encoder",
    "check_exit",
    "check_int4",
    "check_kinds",
    "check_outlines",
    "check_part",
    "check_runtime",
    "check_shared_vocabulary",
    "check_writes_alone",
    "exit_layer",
    "head_size",
    "is_part",
    "is_prepared",
    "load_config",
    "load_network",
    "load_tokenizer",
    "max_positions",
    "new_network",
    "read_outline",
    "read_short_list",
    "reads_states",
    "resolve_device",
    "resolve_dtype",
    "round_weights",
    "rounded_format",
    "run_pair",
    "run_three",
    "short_list_of",
    "shorten",
    "to_int4",
    "to_int8",
    "write_short_list",
]
