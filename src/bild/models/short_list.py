"""A head over a short list of the vocabulary, for a model that drafts.

The head is a large part of what a small model reads in a step, and most of its rows are for tokens that are hardly
ever written. A model with a short list scores the listed tokens alone; all others have the probability zero and are
never drafted. What verifies keeps its whole head, so every rule means what it meant, and a lossless one stays so.

The list lies beside a checkpoint, which stays an ordinary one with a whole head.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from bild.errors import LoadError, one_line
from bild.models.loading.place import Place, find
from bild.models.parts import head_of

FILE = "short_list.json"
BIASES = ("final_logits_bias",)
"""What architectures add to logits outside their head."""


class ShortHead(nn.Module):
    """Some rows of a head.

    Args:
        head: the whole one; left as it is.
        ids: tokens that are kept, in ascending order, so that of equal logits the smallest id still comes first.
    """

    ids: Tensor

    def __init__(self, head: nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self.vocab_size = head.out_features
        kept = torch.tensor(ids, device=head.weight.device)
        self.register_buffer("ids", kept)
        # Made without memory of its own first: the rows that are kept are all it holds.
        self.rows = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, device="meta")
        self.rows.weight = nn.Parameter(head.weight.detach()[kept], requires_grad=False)
        if head.bias is not None:
            self.rows.bias = nn.Parameter(head.bias.detach()[kept], requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Logits of the listed tokens, in their order: ``[…, D] -> […, n]``."""
        logits: Tensor = self.rows(states)
        return logits


def shorten(network: PreTrainedModel, ids: Sequence[int]) -> PreTrainedModel:
    """Keep these rows of a network's head, in place; its logits are those of the listed tokens from now on.

    Args:
        network: with a language-model head.
        ids: token ids, ascending.

    Raises:
        LoadError: its head is no plain linear layer, or has no such rows.
    """
    head, name = head_of(network), type(network).__name__
    if type(head) is not nn.Linear:
        raise LoadError(f"the head of {name} is no plain linear layer and cannot be shortened; remove {FILE}")
    if not ids or ids[-1] >= head.out_features:
        raise LoadError(f"{FILE} lists token {ids[-1] if ids else 'none'}; {name} scores {head.out_features} tokens")
    short = ShortHead(head, ids)
    for module in list(network.modules()):
        for child_name, child in list(module.named_children()):
            if child is head:
                setattr(module, child_name, short)
    for bias in BIASES:
        if isinstance(values := getattr(network, bias, None), Tensor):
            network.register_buffer(bias, values[..., short.ids])
    return network


@contextmanager
def scoring(network: PreTrainedModel, ids: Tensor | None) -> Iterator[None]:
    """Within, a network scores these tokens alone, as :func:`shorten` has it, but its weights are its own and learn.

    Args:
        network: with a plain linear head.
        ids: tokens ``[n]``, ascending; None: all.
    """
    if ids is None:
        yield
        return
    head: Any = head_of(network)
    kept = {name: values for name in BIASES if isinstance(values := getattr(network, name, None), Tensor)}

    def forward(states: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias[ids]
        return functional.linear(states, head.weight[ids], bias)

    try:
        head.forward = forward
        for name, values in kept.items():
            setattr(network, name, values[..., ids])
        yield
    finally:
        del head.forward
        for name, values in kept.items():
            setattr(network, name, values)


def short_list_of(network: PreTrainedModel) -> Tensor | None:
    """The tokens that a shortened network scores ``[n]``, None of any other network."""
    head: Any = head_of(network)
    return head.ids if isinstance(head, ShortHead) else None


def spread(logits: Tensor, ids: Tensor, size: int) -> Tensor:
    """Logits ``[…, n]`` of a short list at their places among ``size`` tokens; −∞ elsewhere, as if forbidden."""
    whole = logits.new_full((*logits.shape[:-1], size), -math.inf)
    return whole.index_copy_(-1, ids, logits)


def read_short_list(name: str | os.PathLike[str], **where: Any) -> list[int] | None:
    """The short list beside a checkpoint, None where there is none.

    Args:
        name: of the checkpoint, see :func:`~bild.models.loading.place.find`.
        where: revision and subfolder, as there.

    Raises:
        LoadError: a file that holds something else.
    """
    file = _file_of(find(name, **where))
    if file is None:
        return None
    try:
        ids = json.loads(file.read_bytes())["ids"]
        right = all(type(each) is int for each in ids) and ids == sorted(set(ids)) and ids and ids[0] >= 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{file} cannot be read ({one_line(error)}); {REMEDY}") from None
    if not right:
        raise LoadError(f"{file} holds no ascending list of token ids; {REMEDY}")
    return list(ids)


REMEDY = "make it anew with bild draft, or remove it: the checkpoint then drafts with its whole head"


def write_short_list(folder: Path, ids: Sequence[int]) -> None:
    """Put a short list beside a checkpoint."""
    (folder / FILE).write_text(json.dumps({"ids": list(ids)}) + "\n", encoding="utf-8")


def digest_of(ids: Sequence[int]) -> str:
    """SHA-256 of a short list, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def _file_of(place: Place) -> Path | None:
    if place.gguf:
        return None
    if place.is_local:
        return place.file(FILE)
    # A repository that is only in the cache has not been asked for a list, and need not have one.
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        found = cached_file(place.root, FILE, **quiet, **place.options)
    except Exception:  # whatever else keeps a repository from answering was told when its weights were loaded
        return None
    return None if found is None else Path(found)
