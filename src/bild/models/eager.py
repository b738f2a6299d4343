"""Any Hugging Face checkpoint behind the Scorer contract, on dynamic caches, uncompiled."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from bild.decoding import Scorer
from bild.errors import LoadError
from bild.models.eager_scorer import EagerScorer, pad
from bild.models.loading.vocabulary import head_size


class EagerModel:
    """A loaded network that can start reading new texts.

    Args:
        network: encoder-decoder or decoder-only model with a language-model head, in eval mode.

    Raises:
        LoadError: its cache cannot roll back (recurrent state) or cannot take several tokens at once.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network.eval()
        self.config = network.config
        # Read once: transformers looks through the parameters each time it is asked.
        self.device, self.dtype = network.device, network.dtype
        self.is_encoder_decoder: bool = bool(self.config.is_encoder_decoder)
        parameters = inspect.signature(network.forward).parameters
        self.takes_position_ids = "position_ids" in parameters
        self.takes_logits_to_keep = "logits_to_keep" in parameters
        self.vocab_size: int = head_size(network)
        self._refuse_uncroppable()
        self._batches = self._promises_batches()
        self._probe()

    @property
    def batches(self) -> bool:
        """Whether rows of different length can share a batch."""
        return self._batches

    @property
    def max_positions(self) -> int | None:
        """Most tokens the decoder can place, or None where positions are relative."""
        return max_positions(self.config)

    @property
    def max_source_positions(self) -> int | None:
        """Most tokens the encoder can place, or None where positions are relative."""
        return self.max_positions if self.is_encoder_decoder else None

    def start(self, sources: Sequence[Sequence[int]]) -> EagerScorer:
        """Begin a batch.

        Args:
            sources: encoder input ids, one list a row; empty lists for a decoder-only model.
        """
        return EagerScorer(self, sources)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin the batch that the large model has begun, as the small one.

        Args:
            large: the large model's scorer; an early exit goes on from what that one has computed.
            sources: as for :meth:`start`.
        """
        return self.start(sources)

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[ModelOutput, Tensor | None]:
        """The encoder's output and its mask ``[B, S]``, None where no row is padded."""
        width = max(len(source) for source in sources)
        ids = torch.tensor([pad(source, width) for source in sources], device=self.device)
        mask = self.source_mask(sources)
        return self.network.get_encoder()(input_ids=ids, attention_mask=mask), mask

    def source_mask(self, sources: Sequence[Sequence[int]]) -> Tensor | None:
        """1 where a source has a token ``[B, S]``, None where no row is padded."""
        counts = [len(source) for source in sources]
        if min(counts) == max(counts):
            return None
        lengths = torch.tensor(counts, device=self.device)
        return (torch.arange(max(counts), device=self.device) < lengths[:, None]).long()

    def _refuse_uncroppable(self) -> None:
        cache = DynamicCache(config=self.config.get_text_config(decoder=True))
        if getattr(self.network, "_is_stateful", False) or not cache.is_croppable:
            raise LoadError(
                f"{type(self.network).__name__} keeps a recurrent state that cannot be rolled back; "
                "use a model with attention layers only"
            )

    def _promises_batches(self) -> bool:
        """A decoder-only model must take ``position_ids``; an encoder-decoder must know positions as
        differences only (T5 and its kin): BART and Marian count columns inside."""
        if self.is_encoder_decoder:
            return hasattr(self.config, "relative_attention_num_buckets")
        return self.takes_position_ids

    def _probe_tokens(self) -> tuple[list[int], list[int]]:
        """A source and five tokens to try a network with."""
        tokens = [self.vocab_size // 2 + i % max(1, self.vocab_size // 2) for i in range(5)]
        return tokens[:3] if self.is_encoder_decoder else [], tokens

    def _probe(self) -> None:
        """Read a few tokens in one piece, in two and in a batch: the three must agree.

        Some architectures have no cache, take one token at a time or lose causality when they take
        several; better refused here than wrong in the middle of a text.
        """
        source, tokens = self._probe_tokens()
        try:
            whole = EagerScorer(self, [source]).extend([tokens], last=5)[0]
            scorer = EagerScorer(self, [source])
            pieces = torch.cat([scorer.extend([tokens[:2]], last=2)[0], scorer.extend([tokens[2:]], last=3)[0]])
        except Exception as error:
            raise LoadError(
                f"{type(self.network).__name__} cannot read several tokens on top of a cache "
                f"({type(error).__name__}); it cannot verify drafts"
            ) from error
        if scorer._cache.get_seq_length() != len(tokens) or disagree(whole, pieces):
            raise LoadError(
                f"{type(self.network).__name__} scores tokens differently when it reads several on top of a cache; "
                "it cannot verify drafts"
            )
        if self._batches:
            batch = EagerScorer(self, [source, source])
            batch.extend([tokens[:1], tokens[:3]])
            self._batches = not disagree(whole[1:2], batch.extend([tokens[1:2], []])[0])


def max_positions(config: PreTrainedConfig) -> int | None:
    """Most tokens a network of this configuration can place, or None where positions are relative."""
    if hasattr(config, "relative_attention_num_buckets"):
        return None
    text = config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def disagree(one: Tensor, other: Tensor, share: float = 0.1) -> bool:
    """Whether two computations of the same logits differ by more than ``share`` of their spread.

    Rounding in 16 bits costs less than a tenth where different kernels compute them.
    """
    one, other = one.float(), other.float()
    spread = (one - one.mean(-1, keepdim=True)).norm()
    return not bool((one - other).norm() <= share * spread + 1e-3)
