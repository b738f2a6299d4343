"""What runs a network behind the Scorer contract; the only place that knows transformers' caches.

:mod:`.protocol` says what a model is. :mod:`.eager` and :mod:`.compiled` run a whole network, :mod:`.early_exit` one
that is cut in two, :mod:`.calm` one whose tokens leave early. All of them store what they have read as :mod:`.cache`
says, and run transformers' modules as :mod:`.seams` and :mod:`.passes` say.
"""

from bild.models.calm import CalmModel, CalmScorer, ExitRule
from bild.models.compiled import CompiledModel, CompiledScorer, is_prepared
from bild.models.eager import EagerModel, EagerScorer
from bild.models.early_exit import exit_layer
from bild.models.int8 import Int8Linear, to_int8
from bild.models.loading import (
    INT8,
    load_config,
    load_network,
    load_tokenizer,
    new_network,
    resolve_device,
    resolve_dtype,
)
from bild.models.pairing import run_pair
from bild.models.positions import max_positions
from bild.models.protocol import Model
from bild.models.vocabulary import check_shared_vocabulary

__all__ = [
    "INT8",
    "CalmModel",
    "CalmScorer",
    "CompiledModel",
    "CompiledScorer",
    "EagerModel",
    "EagerScorer",
    "ExitRule",
    "Int8Linear",
    "Model",
    "check_shared_vocabulary",
    "exit_layer",
    "is_prepared",
    "load_config",
    "load_network",
    "load_tokenizer",
    "max_positions",
    "new_network",
    "resolve_device",
    "resolve_dtype",
    "run_pair",
    "to_int8",
]
