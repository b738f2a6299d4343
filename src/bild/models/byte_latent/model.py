"""A byte-latent network, and its local parts as the small model beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.decoding import Scorer
from bild.errors import InputError, LoadError, one_line
from bild.models import rope
from bild.models.byte_latent.row import ByteRow
from bild.models.eager import EagerModel
from bild.models.joined import ALONE
from bild.models.probing import disagree
from bild.models.single_rows import SingleRows


class ByteModel(EagerModel):
    """A byte-latent network that can start reading new texts; rows are read one by one.

    Args:
        network: a ``BltForCausalLM``.

    Raises:
        LoadError: its patches depend on what follows them, or its positions on the length of a text; or its parts do
            not add up to the network.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.config = network.config
        self._refuse(type(network).__name__)
        super().__init__(network)

    @property
    def parts(self) -> Any:
        """The patcher, the local encoder, the global transformer and the local decoder."""
        modules: Any = self.modules
        return modules.model

    @property
    def by_entropy(self) -> bool:
        """Whether patches end where the patcher expects little; if not, every byte is one."""
        return bool(self.config.patching_mode == "entropy" and self.config.patch_in_forward)

    @property
    def window(self) -> int | None:
        """Bytes that a byte sees in the local parts, itself included; None: all."""
        return _known(self.config, "local_attention_window_len")

    @property
    def patcher_window(self) -> int | None:
        """Likewise in the patcher."""
        return _known(self.parts.patcher.config, "sliding_window")

    @property
    def nothing(self) -> Tensor:
        """No states ``[1, 0, 0]``."""
        return torch.zeros(1, 0, 0, dtype=self.dtype, device=self.device)

    def ids(self, tokens: Sequence[int]) -> Tensor:
        """Numbers ``[1, T]`` where the network reads them."""
        return torch.tensor([list(tokens)], device=self.device)

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return ByteScorer([ByteRow(self) for _ in sources])

    def _refuse(self, name: str) -> None:
        config = self.config
        if self.by_entropy and (config.patch_size is None or config.max_patch_length is not None):
            option = "patch_size" if config.patch_size is None else "max_patch_length"
            raise LoadError(
                f"{name} has {option} {getattr(config, option)}, by which the end of a patch depends on what follows; "
                "drafts cannot be verified so"
            )
        stacks = [config.patcher_config, config.encoder_config, config.global_config, config.decoder_config]
        kinds = [each.get("rope_type", "default") for stack in stacks for each in rope.parameters_of(stack)]
        changing = [kind for kind in kinds if kind in ("dynamic", "longrope")]
        if changing:
            raise LoadError(
                f"{name} has {changing[0]} positions, which change with the length of a text; its bytes cannot be kept"
            )

    def _refuse_uncroppable(self) -> None:
        """Every part has attention layers only."""

    def _probe(self) -> None:
        """Part by part, in pieces, must be the network itself."""
        _, tokens = self.probe_tokens()
        why = "its parts do not add up to the network"
        try:
            with torch.inference_mode():
                expected = self.modules(input_ids=self.ids(tokens), use_cache=False).logits[0, :, : self.vocab_size]
            scorer = self.start([[]])
            pieces = [scorer.extend([tokens[:2]], 2)[0], scorer.extend([tokens[2:]], len(tokens) - 2)[0]]
            right = not disagree(expected, torch.cat(pieces))
        except Exception as error:  # whatever another version of transformers makes of our calls
            right, why = False, one_line(error)
        if not right:
            raise LoadError(f"{type(self.network).__name__} cannot run part by part ({why})")


def _known(config: Any, name: str) -> int | None:
    """An option of a configuration; None where this transformers does not know it, and so does without."""
    value: int | None = getattr(config, name) if hasattr(type(config), name) else None
    return value


class ByteScorer(SingleRows):
    """Rows being read by a :class:`ByteModel`; see :class:`bild.decoding.Scorer`."""

    def copy(self, rows: Sequence[int]) -> ByteScorer:
        """See :class:`~bild.decoding.scorer.Copying`."""
        return ByteScorer([self.rows[b].copy() for b in rows])


class LocalModel(ByteModel):
    """The local encoder and decoder of a byte-latent network, as its small model."""

    stands_alone = False

    @property
    def runs(self) -> list[Any]:
        """Its modules, of those of the network."""
        return [self.parts.local_encoder, self.parts.local_decoder, self.modules.lm_head]

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """There is nothing to begin on.

        Raises:
            InputError: whoever asks.
        """
        raise InputError(ALONE)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin the batch that the large model has begun; see :meth:`~bild.models.protocol.Model.beside`."""
        if not isinstance(large, ByteScorer):
            raise InputError(ALONE)
        return LocalScorer(large)

    def _probe(self) -> None:
        """It is a part of what was tried."""


class LocalScorer(SingleRows):
    """The rows of the large model's batch, read on by the local parts; see :class:`bild.decoding.Scorer`.

    What they have read is a part of those rows, so whoever moves, copies or joins the rows does so to it.

    Args:
        large: the batch.
    """

    def __init__(self, large: ByteScorer) -> None:
        self.large = large

    @property
    def rows(self) -> list[Any]:
        return self.large.rows

    @property
    def lengths(self) -> list[int]:
        return [len(row.tokens) for row in self.rows]

    def read(self, row: ByteRow, tokens: Sequence[int], last: int) -> Tensor:
        known = tokens[:-1] if row.length == len(row.tokens) else []
        # Where nothing is drafted yet the network reads all but the last, and the local parts go on from there.
        scored = row.extend(known, last - 1)
        return torch.cat([scored, row.draft(tokens[len(known) :], last)]) if tokens else scored

    def truncate(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self.rows, lengths, strict=True):
            row.forget(length)

    def keep(self, rows: Sequence[int]) -> None:
        """The large model's scorer does."""

    def join(self, other: LocalScorer) -> None:
        """Likewise."""
