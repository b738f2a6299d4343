"""CALM: every token leaves one model's decoder as soon as its hidden state is settled (paper, section 7.2).

Schuster et al. 2022, "Confident Adaptive Language Modeling", arXiv 2207.07061. What a token skipped has no hidden
state of its own for it; its state at the exit stands in (state propagation), so that later tokens that go deeper
find keys and values of every earlier one. Of a skipped layer only those are computed, and only when a later token
gets there.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from bild.decoding.scores import widened
from bild.errors import InputError, LoadError, check_count, one_line
from bild.models.cache_argument import cache_argument
from bild.models.eager.model import EagerModel
from bild.models.eager.sources import Encoded
from bild.models.parts import decoder_of, head_of
from bild.models.probing import Reference, disagree
from bild.models.single_rows import SingleRows, crop

Confidence = Literal["state", "margin", "max"]
ARCHITECTURES = ("t5", "mt5")


@dataclass(frozen=True, kw_only=True)
class ExitRule:
    """After which decoder layer a token may leave: the first whose confidence reaches the threshold, else the last.

    The threshold decays over the text, ``λ_t = 0.9 λ + 0.1 exp(−τ t / N)``, because early mistakes do more harm
    (CALM, equation 5, whose clip to 0…1 never acts on λ in 0…1); t counts the tokens before this one.

    Args:
        threshold: λ, 0…1, default 0.9; higher = slower, nearer to the whole network. Above 1 no token leaves
            early, below 0 every token leaves at once.
        decay: τ, 0…∞, default 4; higher = faster; 0: the threshold is ``0.9 λ + 0.1`` throughout.
        confidence: ``"state"``: cosine similarity of the token's hidden states behind this layer and the one
            before (before the first: the embedding), the paper's measure; ``"margin"``: probability of the
            likeliest token less that of the second, as the head reads this layer's state; ``"max"``: probability
            of the likeliest. The latter two compute the head behind every layer.
        min_layers: layers every token runs, 1…, default 1. CALM compares hidden states from layer 2 on.
        max_tokens: N, tokens of the longest text, 1…, default 256.

    Raises:
        InputError: a value out of range.
    """

    threshold: float = 0.9
    decay: float = 4.0
    confidence: Confidence = "state"
    min_layers: int = 1
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise InputError("threshold is nan; allowed is 0 to 1, above 1 for never, below 0 for at once")
        if not 0 <= self.decay < math.inf:
            raise InputError(f"decay is {self.decay}; allowed is 0 or more")
        if self.confidence not in get_args(Confidence):
            raise InputError(f"confidence is {self.confidence!r}; allowed are {', '.join(get_args(Confidence))}")
        for name in ("min_layers", "max_tokens"):
            check_count(name, getattr(self, name))

    def threshold_at(self, position: int) -> float:
        """λ_t of the token that ``position`` tokens precede."""
        if not 0 <= self.threshold <= 1:
            return math.copysign(math.inf, self.threshold)
        return 0.9 * self.threshold + 0.1 * math.exp(-self.decay * position / self.max_tokens)


class CalmModel(EagerModel):
    """A T5 or mT5 whose tokens leave the decoder early; rows are read one by one.

    Args:
        network: in eval mode; trained so that its head reads every layer's state, or the text suffers.
        rule: when a token leaves.

    Raises:
        LoadError: another architecture, or layers that do not add up to the network.
    """

    def __init__(self, network: PreTrainedModel, rule: ExitRule | None = None) -> None:
        kind = network.config.model_type
        if kind not in ARCHITECTURES:
            raise LoadError(f"CALM runs {' and '.join(ARCHITECTURES)} checkpoints, this is a {kind}")
        self.rule = ExitRule(threshold=math.inf)
        self.exits: Counter[int] = Counter()
        """How many tokens left behind which layer (from 1), since the model was made."""
        super().__init__(network)
        self.rule = ExitRule() if rule is None else rule
        self.exits.clear()

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.rule

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder's blocks."""
        blocks: Sequence[Any] = decoder_of(self.modules).block
        return blocks

    @property
    def mean_layers(self) -> float | None:
        """Decoder layers run / tokens read; None before the first."""
        tokens = self.exits.total()
        return sum(layer * count for layer, count in self.exits.items()) / tokens if tokens else None

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> CalmScorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return CalmScorer(self, sources, encoded)

    def head(self, state: Tensor) -> Tensor:
        """Next-token logits ``[1, V]`` of a hidden state ``[1, 1, D]``."""
        state = decoder_of(self.modules).final_layer_norm(state)
        if getattr(self.config, "scale_decoder_outputs", False):
            state = state * self.config.d_model**-0.5
        logits: Tensor = head_of(self.modules)(state)
        return logits[0, :, : self.vocab_size]

    def _probe(self) -> None:
        """Layer by layer must be the network itself, where no token leaves early."""
        # Rows do not share passes: their tokens leave at different layers.
        source, tokens = self.probe_tokens()
        why = "its layers do not add up to the network"
        try:
            expected = Reference(self.modules, source).read(tokens, len(tokens))
            right = not disagree(expected, CalmScorer(self, [source]).extend([tokens], len(tokens))[0])
        except Exception as error:  # whatever another version of transformers makes of our calls
            right, why = False, one_line(error)
        if not right:
            raise LoadError(f"{type(self.network).__name__} cannot run layer by layer ({why})")


class CalmScorer(SingleRows):
    """Rows being read by a :class:`CalmModel`; see :class:`bild.decoding.Scorer`."""

    def __init__(
        self, model: CalmModel, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None
    ) -> None:
        known = [None] * len(sources) if encoded is None else [[states] for states in encoded]
        super().__init__([_Row(model, *each) for each in zip(sources, known, strict=True)])

    @property
    def exits(self) -> list[list[int]]:
        """The layer (from 1) behind which each token of each row left."""
        return [list(row.exits) for row in self.rows]


class _Row:
    """One text: the state each token left with, and keys and values of each layer, as far as tokens have got."""

    def __init__(self, model: CalmModel, source: Sequence[int], encoded: Sequence[Tensor] | None = None) -> None:
        self.model, self._encoded = model, Encoded(model.modules, [source], encoded)
        self.states: list[Tensor] = []
        self.exits: list[int] = []
        # The second holds the source's, which a layer fills the first time it runs.
        self._past: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @property
    def length(self) -> int:
        return len(self.states)

    def extend(self, tokens: Sequence[int], last: int) -> Tensor:
        """Read tokens one by one; logits ``[K, V]`` after the last K of them, at most ``last``."""
        model, scored = self.model, []
        for left in range(len(tokens), 0, -1):
            state, logits = self._read(tokens[-left])
            if left <= last:
                scored.append(model.head(state) if logits is None else logits)
        return torch.cat(scored) if scored else torch.zeros(0, model.vocab_size, dtype=model.dtype, device=model.device)

    def copy(self) -> _Row:
        """Another row that has read the same."""
        other = copy.copy(self)
        other.states, other.exits = list(self.states), list(self.exits)
        other._past = copy.deepcopy(self._past)
        return other

    def truncate(self, length: int) -> None:
        """Forget everything after ``length`` tokens."""
        del self.states[length:], self.exits[length:]
        crop(self._past.self_attention_cache, length)

    def _read(self, token: int) -> tuple[Tensor, Tensor | None]:
        """Run layers until the token may leave; its state ``[1, 1, D]``, and its logits where it left by them."""
        model, rule = self.model, self.model.rule
        state = decoder_of(model.modules).embed_tokens(torch.tensor([[token]], device=model.device))
        threshold = rule.threshold_at(len(self.states))
        biases: Sequence[Tensor | None] = (None, None)
        asked = range(rule.min_layers, len(model.layers) if threshold < math.inf else 0)
        for layer in range(1, len(model.layers) + 1):
            before = state
            state, *biases = self._run(layer - 1, state, biases)
            if layer in asked:
                confidence, logits = self._confidence(state, before)
                if confidence >= threshold:
                    break
        else:
            logits = None
        self.states.append(state)
        self.exits.append(layer)
        model.exits[layer] += 1
        return state, logits

    def _run(self, index: int, state: Tensor, biases: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """One layer; the state behind it, and the position biases that the first computes for all."""
        self._propagate(index)
        bias, source_bias = biases
        run = self.model.layers[index]
        # Encoded only now: a text the small model ends unread never costs the large model's encoder.
        source, past = self._encoded.of([0])[0][None], {cache_argument(run): self._past}
        outputs: Sequence[Tensor] = run(state, None, bias, source, None, source_bias, **past)
        return outputs[:3]

    def _propagate(self, index: int) -> None:
        """Give a layer the keys and values of tokens that left before it, from their states at the exit."""
        cache = self._past.self_attention_cache
        left = self.states[cache.get_seq_length(index) :]
        if left:
            block = self.model.layers[index].layer[0]
            own, states = block.SelfAttention, block.layer_norm(torch.cat(left, dim=1))
            keys, values = (part(states).unflatten(-1, (own.n_heads, -1)).transpose(1, 2) for part in (own.k, own.v))
            cache.update(keys, values, index)

    def _confidence(self, state: Tensor, before: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a state behind a layer, beside the one before it; and its logits where they were computed for it."""
        rule = self.model.rule
        if rule.confidence == "state":
            # A threshold of 0.98 is within bfloat16's rounding of 1.
            return torch.cosine_similarity(widened(state), widened(before), dim=-1), None
        logits = self.model.head(state)
        first, second = widened(logits).softmax(-1).topk(2).values[0]
        return first - second if rule.confidence == "margin" else first, logits
