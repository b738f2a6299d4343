"""One input on its way into the loop: where its decoder starts, how far it may go, what ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from bild.decoding import Request
from bild.engine import Job
from bild.errors import InputError, TooLongError
from bild.generation.options import GenerationOptions
from bild.generation.prompts import Input, Prompter, of_input
from bild.generation.stop_strings import StopStrings
from bild.models import Model


class Preparer:
    """Makes the jobs of a call; what is the same for all of its inputs is looked at once.

    Args:
        prompter: what turns inputs into token ids.
        asked: options of the call.
        models: large and small.
        tokenizer: of the pair; stop strings need it.
        salt: see :class:`~bild.decoding.Request`.

    Raises:
        InputError: an option that cannot be met, whatever the input.
    """

    def __init__(
        self,
        prompter: Prompter,
        asked: GenerationOptions,
        *,
        models: Sequence[Model],
        tokenizer: PreTrainedTokenizerBase | None,
        salt: str = "",
    ) -> None:
        self.prompter, self.asked, self.models, self.tokenizer, self.salt = prompter, asked, models, tokenizer, salt
        large = models[0]
        asked.check_ids(large.vocab_size)
        self.options, self.ends = asked.to_dict(), asked.eos_token_ids
        self.start = [_decoder_start(asked, large)] if large.is_encoder_decoder else None

    def jobs(self, items: Iterable[Input], *, alone: bool, copies: int = 1) -> Iterator[Job]:
        """The jobs of inputs, in order.

        Args:
            items: the inputs.
            alone: whether there is one only, which an error then need not name.
            copies: texts of each, 1…

        Raises:
            InputError: an input that cannot be used, or an option that it cannot meet.
        """
        known = None
        if isinstance(items, list):
            self.asked.check_seeds(len(items) * copies)
            known = self.prompter.encode_list(items)
        for at, item in enumerate(items):
            with of_input(at, alone=alone):
                ids = self.prompter.encode(item) if known is None else known[at]
                indices = range(at * copies, (at + 1) * copies)
                jobs = [self.job(ids, each, is_one_of_several=copies > 1) for each in indices]
            yield from jobs

    def job(self, ids: list[int], index: int, *, is_one_of_several: bool = False) -> Job:
        """The job of one input.

        Args:
            ids: its token ids.
            index: its place in the call, which chooses its seed.
            is_one_of_several: see :class:`~bild.engine.Job`.

        Raises:
            InputError: more tokens than the models have positions, or an option that cannot be met.
        """
        asked, large = self.asked, self.models[0]
        source, prompt = ([], ids) if self.start is None else (ids, self.start)
        longest = fit(len(source), len(prompt), asked.new_tokens(len(prompt)), self.models)
        request = Request(
            prompt=prompt,
            max_new_tokens=longest,
            eos_token_ids=self.ends,
            source=copyable(source, large),
            stop=_stop(asked, self.tokenizer, len(prompt)),
            process=asked.processor(len(prompt), longest, ids, large.device),
            generator=generator_of(asked.seed_of(index)) if asked.do_sample else None,
            logprobs=asked.logprobs,
            salt=self.salt,
        )
        return Job(source, request, options=self.options, is_one_of_several=is_one_of_several)


def copyable(source: Sequence[int], large: Model) -> Sequence[int]:
    """A source as far as its tokens may stand in the text: nothing where the encoder has a vocabulary of its own."""
    config = large.config
    shared = getattr(config, "share_encoder_decoder_embeddings", True)
    return source if shared and not hasattr(config, "tgt_vocab_size") else ()


def fit(source_length: int, prompt_length: int, max_new_tokens: int, models: Sequence[Model]) -> int:
    """How many of ``max_new_tokens`` the models have positions for.

    Raises:
        InputError: not even one, or a source too long for an encoder.
    """
    _check_fits(source_length, [model.max_source_positions for model in models], "tokens")
    limits = [model.max_positions for model in models]
    # One position is left for the text to come.
    _check_fits(prompt_length + 1, limits, "prompt tokens and one to come")
    return min([max_new_tokens, *(limit - prompt_length for limit in limits if limit is not None)])


def _decoder_start(asked: GenerationOptions, large: Model) -> int:
    start = asked.decoder_start_token_id
    for name in ("decoder_start_token_id", "bos_token_id"):
        start = getattr(large.config, name, None) if start is None else start
    if start is not None:
        return int(start)
    raise InputError("the checkpoint names no decoder start; give decoder_start_token_id")


def _check_fits(length: int, limits: Sequence[int | None], what: str) -> None:
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is not None and length > limit:
        raise TooLongError(f"the text has {length} {what}; the models place at most {limit}; shorten it")


def _stop(
    asked: GenerationOptions, tokenizer: PreTrainedTokenizerBase | None, prompt_length: int
) -> StopStrings | None:
    if not asked.stop_strings:
        return None
    strings = [asked.stop_strings] if isinstance(asked.stop_strings, str) else asked.stop_strings
    return StopStrings(strings, tokenizer, prompt_length)


def generator_of(seed: int | None) -> torch.Generator:
    """A row's source of random numbers; None: another one each time."""
    if seed is None:
        # From torch's own, so that torch.manual_seed is enough for those who sow only once.
        seed = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(seed)
