"""Arithmetic and memory traffic of decoding, counted from the shapes of a network (formulas in docs/reproduce.md).

A matrix that ``q`` tokens pass costs ``2 q`` operations a weight, however many tokens share the pass, but its weights
are read once: that is what verifying a draft in one pass saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bild.decoding import Commit
from bild.errors import InputError
from bild.models import Int4Linear, Int8Linear

CROSS = ("EncDecAttention", "encoder_attn", "crossattention")
"""Part of the name of an attention that looks at the source."""
QUERIES, KEYS_VALUES, FUSED = ("q", "q_proj"), ("k", "v", "k_proj", "v_proj"), ("c_attn",)


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, a multiplication and an addition being two, and bytes read or written."""

    flops: float = 0
    moved: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.moved + other.moved)

    @property
    def intensity(self) -> float:
        """Operations divided by bytes."""
        return self.flops / self.moved


@dataclass
class Stack:
    """What the layers of one side come to, added up; sizes in numbers, not bytes."""

    weights: int = 0
    """Of the matrices that every token passes."""
    widths: int = 0
    """Inputs and outputs of those matrices."""
    bytes: int = 0
    """Everything that is read once a pass: those matrices, biases, norms."""
    query: int = 0
    """Width of the queries, all layers."""
    kept: int = 0
    """Keys and values of a token, all layers."""
    source_weights: int = 0
    """Of the matrices that make keys and values of the source, once a text."""
    source_widths: int = 0
    source_bytes: int = 0
    source_query: int = 0
    source_kept: int = 0
    """Keys and values of a source token, all layers."""
    heads: int = 0
    """All layers."""
    source_heads: int = 0

    @classmethod
    def of(cls, module: nn.Module, heads: int) -> Stack:
        """Of an encoder or decoder, without embeddings and head.

        Args:
            module: holds the layers.
            heads: of one attention.
        """
        own = cls()
        embedded = {id(weight) for m in module.modules() if isinstance(m, nn.Embedding) for weight in m.parameters()}
        for name, part in module.named_modules():
            shape = _shape(part)
            cross = any(mark in name for mark in CROSS)
            last = name.rpartition(".")[2]
            if shape is not None:
                own._add(last, cross, *shape)
            held = sum(_bytes(tensor) for tensor in _held(part) if id(tensor) not in embedded)
            if cross and last in KEYS_VALUES:
                own.source_bytes += held
            else:
                own.bytes += held
            if shape is not None and (last in QUERIES or last in FUSED):
                own.heads += 0 if cross else heads
                own.source_heads += heads if cross else 0
        return own

    def _add(self, last: str, cross: bool, inputs: int, outputs: int) -> None:
        """Count one matrix by what it makes."""
        if cross and last in KEYS_VALUES:
            self.source_weights += inputs * outputs
            self.source_widths += inputs + outputs
            self.source_kept += outputs
            return
        self.weights += inputs * outputs
        self.widths += inputs + outputs
        if last in QUERIES and cross:
            self.source_query += outputs
        elif last in QUERIES:
            self.query += outputs
        elif last in KEYS_VALUES:
            self.kept += outputs
        elif last in FUSED:
            self.query += outputs // 3
            self.kept += 2 * outputs // 3


class Counter:
    """Counts the passes of one network.

    Args:
        network: encoder-decoder or decoder-only.

    Raises:
        InputError: attention of a kind it does not know, or experts, of which not all run.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.item = network.dtype.itemsize
        config = network.config.get_text_config(decoder=True)
        heads = int(getattr(config, "decoder_attention_heads", 0) or config.num_attention_heads)
        decoder = network.get_decoder() if network.config.is_encoder_decoder else network.base_model
        self.decoder = Stack.of(decoder, heads)
        self.width = int(config.hidden_size)
        if not self.decoder.query or any("expert" in name for name, _ in network.named_modules()):
            raise InputError(f"{type(network).__name__} cannot be counted; its attention is not known, or has experts")

    @cached_property
    def encoder(self) -> Stack | None:
        """The encoder, None where there is none."""
        if not self.network.config.is_encoder_decoder:
            return None
        return Stack.of(self.network.get_encoder(), int(self.network.config.num_attention_heads))

    @cached_property
    def head(self) -> tuple[int, int]:
        """Weights and bytes of the head."""
        module = self.network.get_output_embeddings()
        shape = _shape(module)
        assert shape is not None
        return shape[0] * shape[1], sum(map(_bytes, _held(module)))

    def source(self, tokens: int) -> Cost:
        """Reading the source: the encoder, and the keys and values of every decoder layer."""
        if self.encoder is None:
            return Cost()
        own, here = self.encoder, self.decoder
        flops = 2 * tokens * (own.weights + here.source_weights) + 4 * tokens * tokens * own.query
        numbers = tokens * (own.widths + here.source_widths + self.width) + 2 * own.heads * tokens * tokens
        return Cost(flops, own.bytes + here.source_bytes + self.item * numbers)

    def read(self, tokens: int, context: int, scored: int, source: int) -> Cost:
        """One pass of the decoder.

        Args:
            tokens: new ones.
            context: tokens read when it is done, the new ones among them.
            scored: positions whose logits are computed.
            source: tokens of the source; 0 where there is no encoder.
        """
        own = self.decoder
        head, head_bytes = self.head
        flops = 2 * tokens * own.weights + 4 * tokens * (context * own.query + source * own.source_query)
        flops += 2 * scored * head
        scores = 2 * tokens * (own.heads * context + own.source_heads * source)
        cache = own.kept * (context + tokens) + own.source_kept * source
        logits = scored * (head // self.width)
        numbers = tokens * (own.widths + self.width) + scores + cache + logits
        return Cost(flops, own.bytes + head_bytes + self.item * numbers)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a decoder."""

    side: Literal["small", "large"]
    tokens: int
    """New ones."""
    context: int
    """Tokens read when it is done."""
    scored: int
    """Positions whose logits are used."""


def passes(commits: Iterable[Commit], prompt: int) -> Iterator[Pass]:
    """The passes that these rounds of one text took, in order.

    Args:
        commits: of a finished text.
        prompt: tokens the decoder started from.
    """
    committed, read = prompt, {"small": 0, "large": 0}
    for commit in commits:
        for step in range(commit.steps("small")):
            end = committed + step
            yield Pass("small", end - read["small"], end, 1)
            read["small"] = end
        for _ in range(commit.steps("large")):
            end = committed + len(commit.draft)
            yield Pass("large", end - read["large"], end, len(commit.draft) + 1)
            read["large"] = end
        committed += len(commit.tokens)
        read = {side: min(length, committed - 1) for side, length in read.items()}


def cost_of(
    commits: Sequence[Commit], prompt: int, source: int, counters: dict[Literal["small", "large"], Counter]
) -> tuple[Cost, Cost]:
    """Of one text: reading the source with the models that took part, and decoding.

    Args:
        commits: its rounds.
        prompt: tokens the decoder started from.
        source: tokens of the source.
        counters: of both models.
    """
    every = list(passes(commits, prompt))
    sides = {one.side for one in every}
    reading = sum((counters[side].source(source) for side in sides), Cost())
    decoding = sum((counters[p.side].read(p.tokens, p.context, p.scored, source) for p in every), Cost())
    return reading, decoding


def _shape(part: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a matrix, None of anything else."""
    if isinstance(part, nn.Linear | Int8Linear | Int4Linear):
        return part.in_features, part.out_features
    return (part.weight.shape[0], part.weight.shape[1]) if isinstance(part, Conv1D) else None


def _held(part: nn.Module) -> list[Any]:
    """Weights of this module itself."""
    buffers = part.buffers(recurse=False) if isinstance(part, Int8Linear | Int4Linear) else ()
    return [*part.parameters(recurse=False), *buffers]


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
