"""The door into transformers' own ``generate``.

large.generate(**inputs, custom_generate=bild.custom_generate(small, "exact"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers import StoppingCriteriaList as Criteria
from transformers.generation import stopping_criteria as stopping
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput
from transformers.utils.generic import ModelOutput

from bild.decoding import Beams, Choice, Greedy, Hypothesis, Maker, Policy, Request, Sampling
from bild.decoding.drafters.cascade import DEFAULT_WINDOW
from bild.engine import Job
from bild.errors import InputError, VocabularyError
from bild.generation import BigLittleDecoder, Result
from bild.generation.drafting import check_small
from bild.generation.jobs import copyable, fit, generator_of
from bild.generation.loading import shorten_as_told
from bild.generation.middle import SMALL, check_middle
from bild.generation.processors import STATEFUL, of_row, process_with, split, warp_with
from bild.generation.prompts import as_list
from bild.generation.rewards import RewardLike
from bild.generation.stream import Columns
from bild.models import EagerModel, is_part, load_network, load_tokenizer
from bild.models.parts import unwrapped

Small = PreTrainedModel | EagerModel | str | os.PathLike[str]

PREPARED = {
    "attention_mask",
    "decoder_attention_mask",
    "encoder_outputs",
    "logits_to_keep",
    "position_ids",
    "use_cache",
}
"""Arguments of the large model that ``generate`` makes by itself in every version."""
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
SEARCHES = ("beam_search", "beam_sample")
MODES = ("greedy_search", "sample", *SEARCHES)
"""Of ``generate``, as it calls them; the others decode in other ways."""
KEPT = "_bild_pair"
"""Attribute of a large model."""


def custom_generate(
    small: Small | None = None,
    policy: str | Policy = "bild",
    *,
    drafter: str | Maker | None = None,
    middle: Small | None = None,
    middle_window: int = DEFAULT_WINDOW,
    reward: RewardLike | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: BaseStreamer | None = None,
    runtime: str = "eager",
) -> Callable[..., Any]:
    """Let transformers' ``generate`` decode with a small model beside the large one.

    ``large.generate(**inputs, custom_generate=bild.custom_generate(small))`` takes what plain ``generate``
    takes, but for scores and attentions; a beam search goes with ``"exact"``, ``"large"`` and ``"small"``.
    What forbids, forces or penalises tokens applies to both models;
    temperature, top-k, top-p and the like where tokens are drawn. Processors and stopping criteria of one's own
    are called with one row at a time, also for drafts, and may not remember earlier calls.

    With ``return_dict_in_generate`` the output also has ``bild_results``: one :class:`~bild.Result` a row, with its
    statistics and who wrote each token.

    Args:
        small: the cheap model: loaded, ``decoder.small`` of a :class:`~bild.BigLittleDecoder`, ``"exit:N"``
            (the first N decoder layers of the large one), or a folder or hub name, which is loaded once, in the
            large model's dtype, onto its device. May be left out where the drafter needs none.
        policy: a :class:`~bild.Policy`, or the name of a preset with options as in
            ``"speculative_sampling:window=4"``. ``"bild"``, the default, has default thresholds.
        drafter: who drafts: text as in ``"first:ngram,small"`` or ``"ngram"``, or a function (docs/drafters.md);
            ``"small"``, the small model, by default.
        middle: a model in between that judges drafts first, as ``small``; or ``"small"``, the small one, where the
            drafter needs none (docs/related/hierarchical.md).
        middle_window: longest draft that it is given, in tokens, 1…, default 4.
        reward: what judges segments under ``policy="reward"`` (docs/related/reward.md); it needs the tokenizer.
        tokenizer: of the models; needed for ``stop_strings``, for the texts of ``bild_results``, and where the
            models' heads differ in size. One given to ``generate`` does not come this far.
        streamer: is handed the prompt, then committed tokens, as by plain ``generate``; likewise.
        runtime: ``"eager"``, ``"static"`` or ``"auto"``, see :class:`~bild.BigLittleDecoder`.

    Returns:
        What ``generate`` takes as ``custom_generate``. Both models are prepared in the first call; the large one
        keeps the pair for the next, also from another ``custom_generate`` of the same models.

    Raises:
        InputError: a small model that is none of these, or none where one is needed; when called, what the loop
            cannot do.
    """
    if small is None and drafter is None:
        raise InputError("small is missing; give the cheap model, or a drafter that needs none: drafter='ngram'")
    drafting = "small" if drafter is None else drafter
    check_small(drafting, small is not None)
    small, middle = unwrapped(small), unwrapped(middle)
    for side, given in (("small", small), ("middle", middle)):
        if given is not None and not isinstance(given, PreTrainedModel | EagerModel | str | os.PathLike):
            raise InputError(f"{side} is a {type(given).__name__}; give a loaded model, a folder or a hub name")
    check_middle(middle, middle_window, drafting, small is not None)

    def loop(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Criteria,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        try:
            # Named here, stop_strings do not make generate() look for the tokenizer it does not hand on.
            criteria = Criteria([*stopping_criteria, *_stop_strings(stop_strings, tokenizer)])
            shown, given = _one_each(generation_config, input_ids, model_kwargs)
            call = Call(model, shown, logits_processor, criteria, generation_config, inputs_tensor, given)
            call.check()
            decoder = _pair(model, small, middle, middle_window, tokenizer, runtime)
            return call.output(call.run(decoder, decoder.resolve_policy(policy), streamer, drafting, reward))
        finally:
            # Also after an error: without its end whoever reads the streamer would wait for ever.
            if streamer is not None:
                streamer.end()

    return loop


@dataclass(frozen=True)
class Call:
    """What ``generate`` has prepared for one call."""

    model: PreTrainedModel
    input_ids: Tensor
    """Decoder tokens ``[B, T]``, one row for each text to come; padded where a mask says so."""
    processors: LogitsProcessorList
    criteria: Criteria
    config: GenerationConfig
    inputs_tensor: Tensor | None
    """The encoder's input, one row for each text that came."""
    model_kwargs: dict[str, Any]

    def check(self) -> None:
        """Refuse what the loop cannot honour.

        Raises:
            InputError: what it is, and what to do instead.
        """
        given = {name: value for name, value in self.model_kwargs.items() if value is not None}
        mode = self.config.get_generation_mode()
        outputs = [name for name in OUTPUTS if getattr(self.config, name) and self.config.return_dict_in_generate]
        # A cache is known by what it is, because its name changes with the version of transformers.
        caches = {name for name, value in given.items() if isinstance(value, Cache)}
        unknown = given.keys() - PREPARED - caches
        if unknown:
            unknown -= made_by_generate(self.model)
        stateful = [type(processor).__name__ for processor in self.processors if isinstance(processor, STATEFUL)]
        if mode not in MODES:
            raise InputError(f"this asks for {mode.value}; allowed are {', '.join(MODES)}")
        if outputs:
            raise InputError(f"{outputs[0]} is not available: rejected draft tokens have no scores; leave it out")
        if unknown:
            raise InputError(f"{min(unknown)} cannot be used, both models read token ids alone; leave it out")
        if stateful:
            raise InputError(f"{stateful[0]} does not go with drafts that may be rolled back; leave it out")
        for name in sorted(caches):
            if given[name].get_seq_length() > 0:
                raise InputError(f"{name} holds tokens already, and the small model must read them too; leave it out")

    def run(
        self,
        decoder: BigLittleDecoder,
        policy: Policy,
        streamer: BaseStreamer | None,
        drafter: str | Maker,
        reward: RewardLike | None,
    ) -> list[Result]:
        """Decode every row; one after the other where the models cannot take several."""
        jobs, rules = self.jobs(decoder), decoder.rules(policy, self.choice, reward, self.beams, drafter)
        stream = None if streamer is None else Columns(streamer, self.input_ids, self.pad)
        watch = None if stream is None else stream.add
        return list(decoder.results_each(jobs, rules, len(jobs), watch, drafter))

    def jobs(self, decoder: BigLittleDecoder) -> list[Job]:
        """The rows on their way into the loop."""
        sources, encoded = self._sources() if self.encodes else ([[] for _ in self.input_ids], None)
        mask = self.model_kwargs.get("decoder_attention_mask" if self.encodes else "attention_mask")
        prompts = _visible(self.input_ids, mask, "prompt")
        self._check_positions(mask)
        assert self.criteria.max_length is not None
        wanted = max(1, self.criteria.max_length - self.input_ids.shape[1])
        longest = [fit(len(s), len(p), wanted, decoder.parts) for s, p in zip(sources, prompts, strict=True)]
        if self.pad is None and len(prompts) > 1 and (self.eos or self.stops or len(set(longest)) > 1):
            raise InputError("rows may end at different times with nothing to fill them up; give pad_token_id")
        copied = [copyable(source, decoder.large) for source in sources]
        requests = [self._request(b, *each) for b, each in enumerate(zip(prompts, longest, copied, strict=True))]
        return [Job(*each) for each in zip(sources, requests, encoded or repeat(None, len(sources)), strict=True)]

    def _sources(self) -> tuple[list[list[int]], list[Tensor]]:
        """The encoder's input and output of every row, without what the mask hides."""
        ids = self.inputs_tensor
        if ids is None or ids.dim() != 2 or ids.is_floating_point() or bool((ids < 0).any()):
            raise InputError("the small model must read the source too; give input_ids")
        ids = ids.repeat_interleave(len(self.input_ids) // len(ids), dim=0)
        mask = self.model_kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        encoded = self.model_kwargs["encoder_outputs"][0]
        return _visible(ids, mask, "source"), [row[seen.bool()] for row, seen in zip(encoded, mask, strict=True)]

    def _check_positions(self, mask: Tensor | None) -> None:
        places = self.model_kwargs.get("position_ids")
        if places is not None and places.dim() == 2:
            rows = _visible(places.expand_as(self.input_ids), mask, "prompt")
            if any(row != list(range(len(row))) for row in rows):
                raise InputError("position_ids must count the tokens of a row from 0; leave them out")

    def _request(self, row: int, prompt: list[int], longest: int, source: Sequence[int]) -> Request:
        padded, device = self.input_ids[row].tolist(), self.input_ids.device

        def ids(tokens: Sequence[int]) -> Tensor:
            """As ``generate`` would show them, padding included."""
            return torch.tensor([padded + list(tokens[len(prompt) :])], device=device)

        chain = LogitsProcessorList(of_row(processor, row, len(self.input_ids)) for processor in self._chains[0])
        stops = self.stops
        return Request(
            prompt=prompt,
            max_new_tokens=longest,
            eos_token_ids=self.eos,
            source=source,
            stop=(lambda tokens: bool(stops(ids(tokens), None).any())) if stops else None,
            process=process_with(chain, ids),
            generator=generator_of(None) if self.config.do_sample else None,
        )

    @property
    def encodes(self) -> bool:
        """Whether the models are encoder-decoders."""
        return bool(self.model.config.is_encoder_decoder)

    @cached_property
    def choice(self) -> Choice:
        """How both models pick their tokens."""
        return Sampling(warp_with(self._chains[1])) if self.config.do_sample else Greedy()

    @property
    def beams(self) -> Beams | None:
        """How texts are searched; None: they are not."""
        config: Any = self.config
        if not _searches(config):
            return None
        return Beams(width=config.num_beams, length_penalty=config.length_penalty, early_stopping=config.early_stopping)

    @cached_property
    def _chains(self) -> tuple[LogitsProcessorList, LogitsProcessorList]:
        """What applies to both models before anything is compared, and what shapes a draw."""
        return split(self.processors) if self.config.do_sample else (self.processors, LogitsProcessorList())

    @cached_property
    def stops(self) -> Criteria:
        """Criteria beside the end tokens and the length."""
        known = (stopping.EosTokenCriteria, stopping.MaxLengthCriteria)
        return Criteria(criterion for criterion in self.criteria if type(criterion) not in known)

    @cached_property
    def eos(self) -> frozenset[int]:
        """Tokens that end a text."""
        ends = [each for each in self.criteria if type(each) is stopping.EosTokenCriteria]
        return frozenset(id for each in ends for id in each.eos_token_id.tolist())

    @cached_property
    def pad(self) -> int | None:
        """What fills up a row that has ended: as in transformers an end token where no padding token is named."""
        eos = self.config.eos_token_id
        first: int | None = eos[0] if isinstance(eos, list) else eos
        return first if self.config.pad_token_id is None else self.config.pad_token_id

    def output(self, results: list[Result]) -> Any:
        """What ``generate`` returns."""
        prompts, texts = self.input_ids, [list[Any](result.token_ids) for result in results]
        if self.beams is not None:
            asked = self.config.num_return_sequences or 1
            prompts = prompts.repeat_interleave(asked, dim=0)
            texts = [list[Any](each.tokens) for result in results for each in _filled(result.hypotheses, asked)]
        width = max(map(len, texts))
        rows = [[*text, *[self.pad] * (width - len(text))] for text in texts]
        sequences = torch.cat([prompts, torch.tensor(rows, device=prompts.device)], dim=1)
        if not self.config.return_dict_in_generate:
            return sequences
        kind: Any = GenerateEncoderDecoderOutput if self.encodes else GenerateDecoderOnlyOutput
        output = kind(sequences=sequences)
        output.bild_results = results
        return output


def _searches(config: GenerationConfig) -> bool:
    """Whether texts are found by a beam search, drawn or not."""
    return config.get_generation_mode() in SEARCHES


def _one_each(config: GenerationConfig, ids: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """What a beam search begins with, once a text: ``generate`` repeats it for every hypothesis."""
    if not _searches(config):
        return ids, given
    width, count = config.num_beams or 1, len(ids)

    def first(value: Any) -> Any:
        if isinstance(value, ModelOutput):
            return type(value)(**{name: first(each) for name, each in value.items()})
        return value[::width] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

    return ids[::width], {name: first(value) for name, value in given.items()}


def _filled(hypotheses: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """So many, the best first; where fewer were found the last stands for those that are missing."""
    return [hypotheses[min(place, len(hypotheses) - 1)] for place in range(count)]


def made_by_generate(model: PreTrainedModel) -> set[str]:
    """The arguments that this version of ``generate`` makes for this model when it is given token ids alone."""
    made: set[str] = set()

    def note(model: PreTrainedModel, input_ids: Tensor, **arguments: Any) -> Tensor:
        made.update(arguments)
        return input_ids

    config = GenerationConfig(max_new_tokens=1, decoder_start_token_id=0, pad_token_id=0)
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    generate: Any = model.generate
    generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=note)
    return made


@dataclass(frozen=True)
class Kept:
    """The pair a large model was last decoded in; the model itself keeps it, so that they are freed together."""

    decoder: BigLittleDecoder
    arguments: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy or a pickle of the model starts without


def _pair(
    large: PreTrainedModel,
    small: Small | None,
    middle: Small | None,
    middle_window: int,
    tokenizer: PreTrainedTokenizerBase | None,
    runtime: str,
) -> BigLittleDecoder:
    """The models behind the contracts of the loop, made once for the same arguments."""
    sides = [each.network if isinstance(each, EagerModel) else each for each in (small, middle)]
    arguments = (large.device, large.dtype, *sides, middle_window, tokenizer, runtime)
    kept: Kept | None = large.__dict__.get(KEPT)
    same = kept is not None and kept.decoder.large.network is large and kept.arguments == arguments
    # Another vocabulary, an adapter or layers that were exchanged make another pair.
    if kept is not None and same and all(model.is_current() for model in kept.decoder.parts):
        return kept.decoder
    (cheap, own), (between, its_own) = (_loaded(side, large, tokenizer) for side in sides)
    if isinstance(cheap, PreTrainedModel) and cheap is not sides[0]:
        # What drafts has its short list; one in between judges, too, and keeps its whole head.
        shorten_as_told(cheap, str(sides[0]))
    try:
        decoder = BigLittleDecoder(
            large,
            cheap,
            tokenizer,
            small_tokenizer=own,
            middle=between,
            middle_tokenizer=its_own,
            middle_window=middle_window,
            # A call names its own; who drafts decides nothing about how the models are prepared.
            drafter="ngram",
            runtime=runtime,
        )
    except VocabularyError as error:
        if tokenizer is not None:
            raise
        # generate() knows the folder of neither model.
        raise VocabularyError(f"{str(error).partition(';')[0]}; give custom_generate the pair's tokenizer=…") from None
    setattr(large, KEPT, Kept(decoder, arguments))
    return decoder


def _loaded(side: Any, large: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Any, Any]:
    """A network, or what names a part of another; and its tokenizer, where vocabularies are compared by content."""
    if side is None or isinstance(side, PreTrainedModel) or side == SMALL or is_part(os.fspath(side)):
        return side, tokenizer
    own = None if tokenizer is None else load_tokenizer(side)
    return load_network(side, dtype=large.dtype, device=large.device), own


def _stop_strings(
    strings: str | Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[stopping.StopStringCriteria]:
    if not strings:
        return []
    if tokenizer is None:
        raise InputError("stop_strings need a tokenizer, which generate does not hand on; give it to custom_generate")
    return [stopping.StopStringCriteria(tokenizer, [strings] if isinstance(strings, str) else list(strings))]


def _visible(ids: Tensor, mask: Tensor | None, what: str) -> list[list[int]]:
    """What the mask lets through of each row."""
    inputs, _ = as_list(ids, mask)
    # Of a tensor only lists of ids come back.
    rows = cast(list[list[int]], inputs)
    if not all(rows):
        raise InputError(f"the mask hides the whole {what} of row {rows.index([])}; leave a token of it")
    return rows
