"""Where a drafter that reads states begins: at the best guess that is linear in what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bild.models.joined import joined_layer
from bild.models.parallel import parallel_head
from bild.models.parts import decoder_of, final_norm
from bild.training.drafting.layers import Batch
from bild.training.remembering import head_inputs

TOKENS = 12_000
"""Of the large model's texts, on which it is fitted; with their prompts there are more."""
RIDGE = 1e-4
"""Share of the mean square of what is read that is added to each, so that what hardly occurs is not fitted."""
OUTPUTS = {"o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense", "dense_4h_to_h", "wo"}
"""What architectures call the linear layers whose outputs are added to what they have read."""


@torch.no_grad()
def fit_joined(small: PreTrainedModel, large: PreTrainedModel, texts: Iterable[Batch]) -> None:
    """Let a network that reads states begin with the guess of the next state that is linear in the token's embedding
    and the state before: its joining layer makes it, by least squares, and its other layers add nothing to it yet.

    Args:
        small: made of the last layers of ``large``; changed in place.
        large: whose states it reads.
        texts: of the large model, one a batch.
    """
    read: list[Tensor] = []
    made: list[Tensor] = []
    for embedded, states, before_norm in _passes(large, texts):
        read.append(torch.cat([embedded[1:], states[:-1]], -1).double())
        # The norm behind it takes the direction alone.
        made.append(torch.nn.functional.normalize(before_norm[1:].double(), dim=-1) * before_norm.shape[-1] ** 0.5)
    x, y = torch.cat(read), torch.cat(made)
    joined = joined_layer(small).weight
    joined.copy_(_solved(x.T @ x, x.T @ y).T.to(joined.dtype))
    for name, module in decoder_of(small).named_modules():
        if name.rpartition(".")[2] in OUTPUTS:
            # Its weights are the large model's own, so others take their place.
            for part, weight in list(module.named_parameters(recurse=False)):
                setattr(module, part, nn.Parameter(torch.zeros_like(weight)))


@torch.no_grad()
def fit_parallel(small: PreTrainedModel, large: PreTrainedModel, texts: Iterable[Batch]) -> None:
    """Let a network that drafts several tokens at once begin with the guess of the states after the first that is
    linear in the guess of the first, by least squares.

    Args:
        small: as :func:`fit_joined` leaves it; changed in place.
        large: as there.
        texts: as there.
    """
    parallel = parallel_head(small)
    assert parallel is not None
    count, width = parallel.at_once - 1, parallel.spread.in_features
    squares = torch.zeros(count, width + 1, width + 1, dtype=torch.float64, device=large.device)
    products = torch.zeros(count, width + 1, width, dtype=torch.float64, device=large.device)
    for embedded, states, _ in _passes(large, texts):
        guess = final_norm(small)(joined_layer(small)(torch.cat([embedded[1:], states[:-1]], -1))).double()
        x = torch.cat([guess, torch.ones_like(guess[:, :1])], -1)
        for at in range(count):
            known, y = x[: len(x) - 1 - at], states[2 + at :].double()
            squares[at] += known.T @ known
            products[at] += known.T @ y
    found = _solved(squares, products).to(parallel.spread.weight.dtype)
    parallel.spread.weight.copy_(found[:, :-1].transpose(1, 2).flatten(0, 1))
    parallel.spread.bias.copy_(found[:, -1].flatten())


def _solved(squares: Tensor, products: Tensor) -> Tensor:
    """What least squares finds, of ``xᵀx`` ``[…, n, n]``, which is changed, and ``xᵀy`` ``[…, n, D]``."""
    diagonal = squares.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(RIDGE * diagonal.mean(-1, keepdim=True))
    solved: Tensor = torch.linalg.solve(squares, products)
    return solved


def _passes(large: PreTrainedModel, texts: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each text: its embeddings, what the head reads, and what stands before the norm in front of it, ``[T, D]``."""
    module: Any = large
    norm = final_norm(large)
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for text in texts:
            inputs = {name: each.to(large.device) for name, each in text.items() if name not in ("labels", "rows")}
            with head_inputs(large) as states:
                large(**inputs, use_cache=False)
            (read,) = states[-1]
            # Where there is no norm, the head reads what the last layer makes.
            before = read if isinstance(norm, nn.Identity) else seen[-1][0]
            yield module.get_input_embeddings()(inputs["input_ids"])[0], read, before
            seen.clear()
    finally:
        handle.remove()
