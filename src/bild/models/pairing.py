"""The two networks of a pair, each behind the runtime a user names."""

from __future__ import annotations

from contextlib import nullcontext

from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.byte_latent import is_byte_latent, run_byte_latent
from bild.models.compiled import CompiledModel, compiling_aside, is_prepared
from bild.models.eager import EagerModel
from bild.models.early_exit import exit_layer, is_exit_prepared, run_early_exit
from bild.models.joined import ALONE, reads_states
from bild.models.loading import check_kinds
from bild.models.loading.kinds import LOCAL
from bild.models.on_states import is_states_pair_prepared, run_on_states
from bild.models.one_encoder import have_one_encoder, is_pair_prepared, run_one_encoder
from bild.models.protocol import Model
from bild.models.spread import refuse_spread

RUNTIMES = ("auto", "eager", "static")


def run_pair(large: PreTrainedModel, small: PreTrainedModel | str, runtime: str) -> tuple[Model, Model]:
    """Both models, ready to read.

    Args:
        large: network of the accurate model.
        small: network of the cheap one; ``"exit:N"``: the first N decoder layers of the large one; ``"blt:local"``: the
            local parts of a large one that is byte-latent.
        runtime: ``"eager"``, ``"static"``, or ``"auto"``: static where nothing would have to be compiled.

    Raises:
        InputError: an unknown runtime, or a small model that is neither.
        LoadError: two kinds of model, two devices, or a model that cannot roll back or exit there.
    """
    check_runtime(runtime)
    for network in (large, small):
        if not isinstance(network, str):
            refuse_spread(network)
    if is_byte_latent(large) or is_byte_latent(small) or small == LOCAL:
        return run_byte_latent(large, small, runtime == "static")
    if isinstance(small, str):
        count = exit_layer(small)
        if count is None:
            raise InputError(f"small is {small!r}; give a network, or exit:N, or load both with from_pretrained")
        static = is_exit_prepared(large, count) if runtime == "auto" else runtime == "static"
        return run_early_exit(large, count, static)
    if large.device != small.device:
        raise LoadError(f"the models are on {large.device} and {small.device}; put both on one device")
    check_kinds(large.config, small.config)
    if reads_states(small):
        static = is_states_pair_prepared(large, small) if runtime == "auto" else runtime == "static"
        return run_on_states(large, small, static)
    if small is not large and large.dtype == small.dtype and have_one_encoder(large, small):
        static = is_pair_prepared(large, small) if runtime == "auto" else runtime == "static"
        return run_one_encoder(large, small, static)
    static = is_prepared(large) and is_prepared(small) if runtime == "auto" else runtime == "static"
    if not static:
        accurate = EagerModel(large)
        return accurate, accurate if small is large else EagerModel(small)
    with nullcontext() if small is large else compiling_aside(small, large):
        compiled = CompiledModel(large)
    # One network on both sides decodes alone, and is not compiled and held twice.
    return compiled, compiled if small is large else CompiledModel(small)


def is_part(name: str) -> bool:
    """Whether a name stands for a part of the large network, and not for a checkpoint.

    Raises:
        InputError: see :func:`exit_layer`.
    """
    return name == LOCAL or exit_layer(name) is not None


def check_writes_alone(model: Model) -> None:
    """Refuse a small model that cannot write alone.

    Raises:
        InputError: it goes on from what the large one has read.
    """
    if not model.stands_alone:
        raise InputError(ALONE)


def check_runtime(runtime: str) -> None:
    """Whether there is such a runtime.

    Raises:
        InputError: there is none.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"runtime is {runtime!r}; allowed are {', '.join(RUNTIMES)}")
