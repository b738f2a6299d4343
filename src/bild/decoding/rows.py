"""One row of a batch: what was asked for, under which rules, and the tokens written so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from bild.decoding.acceptance import Acceptance, ExactMatch
from bild.decoding.choice import Choice, Greedy
from bild.decoding.draft import ENDS, Draft, HandOverReason
from bild.decoding.hand_over import FixedWindow, HandOver
from bild.decoding.history import History
from bild.decoding.policy import Policy
from bild.decoding.scores import Scores

FinishReason = Literal["eos", "stop", "length"]
NEVER, EXACT = FixedWindow(), ExactMatch()


class Reward(Protocol):
    """Says how good segments are; what is not good enough the large model writes anew."""

    def score(self, rows: Sequence[Row], drafts: Sequence[Draft]) -> Sequence[float]:
        """A number for each draft, which is the end of its row's tokens; higher is better.

        The segment may have begun before the draft, at ``row.segment``. What is no finite number is worse than any
        threshold.
        """


@dataclass(frozen=True, eq=False)
class Segments:
    """What a policy that judges segments needs beside its numbers.

    Args:
        reward: judges.
        complete: whether the tokens since a segment's beginning make a whole one.
    """

    reward: Reward
    complete: Callable[[Sequence[int]], bool]


@dataclass(frozen=True, kw_only=True)
class Beams:
    """How a text is searched.

    Args:
        width: hypotheses that live, 2…
        length_penalty: the power of the length by which the score of what is finished is divided; above 0 favours
            long texts, below 0 short ones, -50 to 50, default 1.
        early_stopping: when the search ends. True: as soon as ``width`` hypotheses are finished. False: when none
            that lives is better than they are at its present length. ``"never"``: when none can become better.

    Raises:
        ValueError: a value out of range.
    """

    SPARE: ClassVar[int] = 2
    """Hypotheses of a drafted layer beyond those that live: the large model may prefer one of these."""
    MOST_PENALTY: ClassVar[int] = 50
    """Largest power, to either side: of a text of a million tokens it is still a number."""
    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if self.width < 2:
            raise ValueError(f"a search of {self.width} beams is none; allowed is 2 or more")
        if not abs(self.length_penalty) <= self.MOST_PENALTY:
            most = self.MOST_PENALTY
            raise ValueError(f"length_penalty is {self.length_penalty}; allowed is a finite number, -{most} to {most}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; allowed are True, False and 'never'")


@dataclass(frozen=True)
class Rules:
    """How a row is decoded. Rows of equal rules are judged together.

    Args:
        policy: when its drafter hands over and what the large model lets pass.
        choice: how both models pick its tokens, greedy by default.
        segments: who judges segments, where the policy is about them.
        beams: how the text is searched (:mod:`bild.decoding.beams`); None: it is written token by token.

    Raises:
        ValueError: a policy about segments without a judge, or the other way round; beams with a policy that lets
            other texts pass than the large model's own.
    """

    policy: Policy = field(default_factory=Policy)
    choice: Choice = field(default_factory=Greedy)
    segments: Segments | None = None
    beams: Beams | None = None

    def __post_init__(self) -> None:
        if self.beams is not None and not searches(self.policy):
            raise ValueError("beams go with exact, large or small; change the policy")
        about_segments = self.policy.segment is not None
        if about_segments != (self.segments is not None) and self.policy.alone is None:
            raise ValueError("a policy about segments goes with a reward that judges them; give both, or neither")

    @property
    def window(self) -> int:
        """Longest draft, 0 where the large model decodes alone."""
        policy = self.policy
        if policy.alone == "large":
            return 0
        window = policy.hand_over.window
        return policy.max_draft_tokens if window is None else min(window, policy.max_draft_tokens)

    @property
    def hand_over(self) -> HandOver:
        """When the small model hands over: to nobody where it writes alone."""
        return self.policy.hand_over if self.policy.alone is None else NEVER

    @property
    def acceptance(self) -> Acceptance:
        """What survives of a draft; where one model writes alone nothing is drafted, so the rule measures nothing."""
        return self.policy.acceptance if self.policy.alone is None else EXACT

    @property
    def most_rows(self) -> int:
        """Rows of a model that the text may take, at most."""
        if self.beams is None:
            return 1
        return self.beams.width + self.window * (self.beams.width + self.beams.SPARE)

    @cached_property
    def below(self) -> Rules:
        """The rules by which a model in between judges, before the large one does."""
        policy = self.policy
        rule = policy.acceptance if policy.qualifier is None else policy.qualifier
        return replace(self, policy=replace(policy, acceptance=rule, qualifier=None, verify_end=True))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued.

    Args:
        prompt: token ids both models start from (decoder start and forced tokens of an
            encoder-decoder, the prompt of a decoder-only model); at least one.
        max_new_tokens: longest continuation, at least 1.
        eos_token_ids: a token of these ends the text.
        source: encoder tokens that may stand in the text too, for drafters that look things up; empty where there are
            none, or where the encoder has a vocabulary of its own.
        stop: given all tokens of the row, says whether the text ends there (stop strings).
        process: ``(prefix tokens, logits [V]) -> logits [V]``: changes the scores of the token
            after a prefix, for both models (forbidden, forced and penalised tokens).
        generator: source of random numbers when sampling, one a row, so that a row's text does
            not depend on its neighbours; None: torch's global one.
        logprobs: how likely each token was is recorded (:attr:`Commit.scored`), and so many of the likeliest tokens in
            its place, 0…; None: nothing is. The text is the same.
        salt: texts of another one share nothing that models have read, though they begin alike.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    eos_token_ids: Collection[int] = ()
    source: Sequence[int] = ()
    stop: Callable[[Sequence[int]], bool] | None = None
    process: Callable[[Sequence[int], Tensor], Tensor] | None = None
    generator: torch.Generator | None = None
    logprobs: int | None = None
    salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a row needs at least one prompt token, got none")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs is {self.logprobs}; allowed is 0 or more, or None")

    def ended(self, last: int, length: int, tokens: Callable[[], Sequence[int]]) -> FinishReason | None:
        """Whether a continuation ends with its last token, and why.

        Args:
            last: the token.
            length: how many there are, the prompt's included.
            tokens: gives all of them, where stop strings are to be looked for.
        """
        if last in self.eos_token_ids:
            return "eos"
        if self.stop is not None and self.stop(tokens()):
            return "stop"
        return "length" if length - len(self.prompt) >= self.max_new_tokens else None


def searches(policy: Policy) -> bool:
    """Whether there is a beam search under this policy: of one model alone, or what is as good as the large one's."""
    return policy.alone is not None or (type(policy.acceptance) is ExactMatch and policy.lossless)


class Halt(NamedTuple):
    """What ends a row's writing, as far as a model can look for it by itself."""

    below: float
    """A token less probable than this is the last one, or one whose probability is not a number."""
    ends: frozenset[int]
    """Any of these tokens is the last one."""
    room: int
    """How many tokens may be written, 1…"""


@dataclass(slots=True, init=False)
class Row(History):
    """``tokens[:committed]`` is final, ``tokens[committed:]`` is the draft.

    Args:
        index: names the row in its commits.
        request: what was asked for.
        rules: how it is decoded.
    """

    index: int
    request: Request
    rules: Rules
    committed: int
    segment: int
    """Where the segment that is being written begins, where a reward judges them."""
    rewrites: int
    """Segments that the large model has written in place of the drafter's."""
    rewriting: bool
    """Whether it is writing one now."""

    def __init__(self, index: int, request: Request, rules: Rules | None = None) -> None:
        History.__init__(
            self, tokens=list(request.prompt), prompt_length=len(request.prompt), generator=request.generator
        )
        self.index, self.request = index, request
        self.rules = Rules() if rules is None else rules
        self.committed = self.segment = len(self.tokens)
        self.rewrites, self.rewriting = 0, False

    @property
    def takes_likeliest(self) -> bool:
        """Whether each token is the likeliest of the model's own scores, so that nothing else need be looked at."""
        return type(self.rules.choice) is Greedy and self.request.process is None

    def halt(self, room: int, below: float = -1.0) -> Halt | None:
        """What ends the writing of a model; None where stop strings do, which only the row itself can find.

        Args:
            room: tokens it may write, 1…
            below: the probability below which it hands over; as it is: it never does.
        """
        request = self.request
        if request.stop is not None:
            return None
        left = request.max_new_tokens - (len(self.tokens) - self.prompt_length)
        return Halt(below, frozenset(request.eos_token_ids), min(room, left))

    def ended(self) -> FinishReason | None:
        """Whether the text ends with the last token written, and why."""
        return self.request.ended(self.tokens[-1], len(self.tokens), lambda: self.tokens)

    def stops(self) -> HandOverReason | None:
        """Why a drafter gives up the turn behind the last token, whatever it would write next; None: it goes on."""
        finish, segments = self.ended(), self.rules.segments
        if finish is not None:
            return ENDS[finish]
        whole = segments is not None and segments.complete(self.tokens[self.segment :])
        return "segment" if whole else None


def process(rows: Sequence[Row], scores: Scores, counts: Sequence[int]) -> Scores:
    """Apply each row's processor to the last ``counts[b]`` positions.

    The last position scores what follows ``row.tokens``, the one before what follows all but the last of them.
    """
    logits = scores.logits.clone()
    for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if row.request.process is not None:
            for back in range(count):
                prefix = row.tokens[: len(row.tokens) - back]
                logits[b, -1 - back] = row.request.process(prefix, logits[b, -1 - back])
    return Scores.of(logits)
