"""What the rest of the house knows of a model: it starts batches, and says what it can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bild.decoding import Scorer


class Model(Protocol):
    """A loaded network that can start reading new texts."""

    network: PreTrainedModel
    """As it was given; no model changes it."""
    vocab_size: int
    """Token ids that are scored, from 0 on; lowered to those that both models of a pair know."""

    @property
    def config(self) -> PreTrainedConfig:
        """Of the network."""

    @property
    def device(self) -> torch.device:
        """Where token ids are put."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether rows have a source beside their text."""

    @property
    def is_compiled(self) -> bool:
        """Whether passes run compiled."""

    @property
    def batches(self) -> bool:
        """Whether rows of different length are read in one pass; if not, each is read in one of its own."""

    @property
    def stands_alone(self) -> bool:
        """Whether it can write where no large model has read the text, from which some small ones go on."""

    @property
    def max_positions(self) -> int | None:
        """Most tokens the decoder can place, or None where positions are relative."""

    @property
    def max_source_positions(self) -> int | None:
        """Most tokens the encoder can place, or None where positions are relative or there is no encoder."""

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch.

        Args:
            sources: encoder input ids, one list a row; empty lists for a decoder-only model.
            encoded: what this model's encoder has made of each source ``[S, D]`` before, if that is known. A model
                that needs more of the source than that computes it anew.

        Raises:
            LoadError: the network has since got another vocabulary.
        """

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin the batch that the large model has begun, as the small one.

        Args:
            large: the large model's scorer; an early exit goes on from what that one has computed.
            sources: as for :meth:`start`.
        """

    def is_current(self) -> bool:
        """Whether the network still has the modules and the vocabulary that this model was made of."""
