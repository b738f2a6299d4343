"""Any Hugging Face checkpoint behind the Scorer contract, uncompiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from bild.decoding import Scorer
from bild.errors import LoadError
from bild.models import probing, rope
from bild.models.cache import Shape
from bild.models.eager.scorer import EagerScorer
from bild.models.loading.vocabulary import head_size
from bild.models.long_texts import LongScorer
from bild.models.parts import decoder_of
from bild.models.positions import limits_of, most
from bild.models.probing import Reference, Rounding
from bild.models.seams import own_modules, plainly, position_table, relative_bias_modules, takes_positions
from bild.models.short_list import short_list_of
from bild.models.spread import refuse_spread
from bild.models.watch import Watch


class EagerModel:
    """A loaded network that can start reading new texts; see :class:`~bild.models.protocol.Model`.

    Args:
        network: encoder-decoder or decoder-only model with a language-model head. It is left as it is: the model
            reads with modules of its own that share its weights.

    Raises:
        LoadError: its cache cannot roll back (recurrent state) or cannot take several tokens at once, or its weights
            are spread over devices or processes.
    """

    stands_alone = True
    """See :class:`~bild.models.protocol.Model`."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.origin = self._origin(network)
        """The network of the user."""
        self.config = network.config
        self.is_encoder_decoder: bool = bool(self.config.is_encoder_decoder)
        self.vocab_size: int = head_size(network)
        self.head_size = self.vocab_size
        """Token ids that its head has rows for, or had before it was shortened."""
        self.max_positions, self.max_source_positions = limits_of(network)
        self.switches_at = rope.switches_at(self.config.get_text_config(decoder=True))
        """Tokens of the longest text before another set of rotary frequencies applies; None: there is one set."""
        if self.switches_at is not None and not rope.switching(network):
            # How its positions change there is not known, so texts end there.
            self.max_positions = most(self.max_positions, self.switches_at)
            self.switches_at = None
        self._refuse_uncroppable()
        self._copy()
        self.shapes: list[Shape] = []
        """Of the keys, then the values, of every decoder layer."""
        self.encoder_output: type[ModelOutput] = BaseModelOutput
        """What its encoder returns hidden states in."""
        self.batches = False
        """Whether rows of different length are read in one pass."""
        with plainly(self.device):
            self._probe()

    @property
    def is_compiled(self) -> bool:
        """Whether passes run compiled: no."""
        return False

    @property
    def scores_all(self) -> bool:
        """Whether the shared vocabulary is all that its head may score."""
        return self.vocab_size == self.head_size

    @property
    def switches(self) -> bool:
        """Whether the rotary frequencies of a row depend on its length."""
        return self.switches_at is not None

    @property
    def farthest(self) -> int | None:
        """The last position its embeddings know, None where positions are relative; padding may lie beyond."""
        return None if self.max_positions is None else self.max_positions - 1

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return self._switching(EagerScorer(self, sources, encoded))

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin the batch that the large model has begun; see :meth:`~bild.models.protocol.Model.beside`."""
        return self.start(sources)

    def is_current(self) -> bool:
        """Whether the network still has the modules and the vocabulary that this model was made of."""
        return not self._watch.sees_other_modules()

    def refresh(self) -> None:
        """Read with the network's modules as they are now, if some were exchanged.

        Raises:
            LoadError: the network has another vocabulary than before.
        """
        if self.is_current():
            return
        now = head_size(self.origin)
        if now != self.head_size:
            raise LoadError(
                f"the vocabulary of {type(self.network).__name__} was changed from {self.head_size} to {now} tokens "
                "after it was loaded into a pair; make the pair anew"
            )
        self._copy()

    def _origin(self, network: PreTrainedModel) -> PreTrainedModel:
        return network

    @property
    def _made_of(self) -> tuple[Any, ...]:
        """The arguments of another model like this one."""
        return (self.origin,)

    def __reduce__(self) -> Any:
        # A copy, or what is read from a pickle, makes modules, watches and graphs of its own.
        return type(self), self._made_of, {"vocab_size": self.vocab_size}

    def _copy(self) -> None:
        """Make modules of our own of the network as it is now."""
        refuse_spread(self.origin)
        self._watch = Watch(self.origin)
        self.modules = own_modules(self.network)
        self.short_list = short_list_of(self.modules)
        """The tokens that its head scores ``[n]``; None: all."""
        # Read once: transformers looks through the parameters each time it is asked.
        self.device, self.dtype = self.network.device, self.network.dtype

    def _switching(self, scorer: Scorer) -> Scorer:
        return scorer if self.switches_at is None else LongScorer(scorer, self.switches_at)

    def _refuse_uncroppable(self) -> None:
        cache = DynamicCache(config=self.config.get_text_config(decoder=True))
        if getattr(self.network, "_is_stateful", False) or not cache.is_croppable:
            raise LoadError(
                f"{type(self.network).__name__} keeps a recurrent state that cannot be rolled back; "
                "use a model with attention layers only"
            )

    def probe_tokens(self) -> tuple[list[int], list[int]]:
        """A source and some tokens to try the network with."""
        return probing.probe_tokens(self.network, self.vocab_size, self.max_positions)

    def _probe(self) -> None:
        """Read a few tokens in one piece, in two and in a batch: the three must agree.

        Some architectures have no cache, take one token at a time or lose causality when they take
        several; better refused here than wrong in the middle of a text.
        """
        source, tokens = self.probe_tokens()
        name = type(self.network).__name__
        try:
            reference = Reference(self.modules, source)
            whole = reference.read(tokens, len(tokens))
            self.shapes = reference.shapes
            if reference.source is not None:
                self.encoder_output = type(reference.source.states)
            scorer = EagerScorer(self, [source])
            pieces = torch.cat([scorer.extend([tokens[:2]], 2)[0], scorer.extend([tokens[2:]], len(tokens) - 2)[0]])
        except Exception as error:
            raise LoadError(
                f"{name} cannot read several tokens on top of a cache ({type(error).__name__}); it cannot verify drafts"
            ) from error
        if not probing.are_numbers(whole):
            dtype = str(self.dtype).removeprefix("torch.")
            raise LoadError(
                f"the scores of {name} are not numbers (NaN or infinite) in {dtype}; its weights are damaged, or it "
                "needs a wider dtype, such as float32"
            )
        rounding = Rounding(self.modules, source, tokens, whole)
        if reference.length != len(tokens) or whole.shape != pieces.shape or not rounding.explains(whole, pieces):
            raise LoadError(
                f"{name} scores tokens differently when it reads several on top of a cache; it cannot verify drafts"
            )
        self.batches = self._takes_rows() and self._reads_rows(source, tokens, whole, rounding)

    def _takes_rows(self) -> bool:
        """Whether each row can be told where it stands, or only the differences of positions matter."""
        if relative_bias_modules(self.modules) or takes_positions(self.modules):
            return True
        places = getattr(decoder_of(self.modules), "embed_positions", None)
        return places is not None and position_table(places)[0].dim() == 2

    def _reads_rows(self, source: list[int], tokens: list[int], whole: Tensor, rounding: Rounding) -> bool:
        """Whether rows of several lengths, with sources of several, score as each does alone."""
        self.batches = True
        try:
            batch = EagerScorer(self, [source, source[:1], source])
            batch.extend([tokens[:1], tokens[:2], tokens[:3]])
            scored = batch.extend([tokens[1:], tokens[2:3], []], len(tokens) - 1)
            short = EagerScorer(self, [source[:1]]).extend([tokens[:3]])[0]
            # Some make a mask only where they read several tokens.
            narrow = EagerScorer(self, [source[:1], source])
            narrow.extend([tokens[:2], tokens[:1]])
            one = narrow.extend([tokens[2:3], tokens[1:2]])
        except Exception:  # whatever a network makes of masks and positions that differ by row
            return False
        pairs = ((whole[1:], scored[0]), (short, scored[1, -1:]), (short, one[0]), (whole[1:2], one[1]))
        return all(rounding.explains(*pair) for pair in pairs)
