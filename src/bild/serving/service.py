"""One pair behind its engine: requests in, texts out; what the APIs share."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from bild.decoding import Commit, Hypothesis, Rules
from bild.engine import Engine, Event, Failed, Finished, Job, Place, Written
from bild.generation import BigLittleDecoder
from bild.generation.jobs import Preparer
from bild.generation.prompts import Input
from bild.serving.following import follow
from bild.serving.metrics import Board
from bild.serving.problems import bad, of_failure
from bild.serving.quotas import Quotas
from bild.serving.settings import Settings
from bild.serving.texts import Trimmer, Writing

MOST_BEAMS = 16
"""Hypotheses that a request may ask for."""
LONGEST_DRAFT = 1024
"""That a request may ask for, in tokens: an answer counts drafts by how much of them was kept."""
KINDS = 64
"""Requests that differ in more than their inputs, of which it is remembered what they ask for."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a request wants decoded.

    Args:
        items: texts, conversations or token ids.
        options: those of :meth:`~bild.BigLittleDecoder.generate_each`.
        count: texts of each item.
        others: further hypotheses of a beam search that are wanted of each text, 0…
        policy: name of a preset, with options.
        lossless: whether only the large model's own text will do.
        stops: stop strings.
        keep_stop: whether they are part of the text.
        salt: requests of another one share nothing that was read.
    """

    items: Sequence[Input]
    options: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    others: int = 0
    policy: str | None = None
    lossless: bool = False
    stops: Sequence[str] = ()
    keep_stop: bool = False
    salt: str = ""


@dataclass(frozen=True)
class Work:
    """A request that is ready to be decoded: ``count`` jobs an item, item by item."""

    jobs: Sequence[Job]
    rules: Rules
    ask: Ask
    policy: Mapping[str, Any]
    """That of its rules, as a dictionary."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all its items: of the sources or, decoder-only, of the prompts."""
        firsts = self.jobs[:: self.ask.count]
        return sum(len(job.source) if job.source else len(job.request.prompt) for job in firsts)


@dataclass
class Text:
    """One text and how long it took."""

    writing: Writing
    end: Finished | None = None
    windows: Counter[int] = field(default_factory=Counter)
    """Rounds by the longest draft they allowed."""
    others: list[Writing] = field(default_factory=list)
    """Further hypotheses of a beam search, the best first."""

    def add(self, event: Written, window: int) -> str:
        """Take a round over; the text that it settles.

        Args:
            event: of the engine.
            window: longest draft by the text's own policy.
        """
        self.windows[window if event.window is None else min(window, event.window)] += 1
        return self.writing.add(event.commit)


class Service:
    """What the APIs share: the pair, its engine, and what the server was told.

    Args:
        decoder: the pair.
        engine: of the pair; runs in a thread of its own.
        settings: what the server was told.
    """

    def __init__(self, decoder: BigLittleDecoder, engine: Engine, settings: Settings) -> None:
        self.decoder, self.engine, self.settings = decoder, engine, settings
        self.board = Board(engine, settings)
        self.quotas = Quotas(settings.key_requests, settings.key_rate)
        # The engine looks for stop strings with the pair's own, in its thread; a tokenizer is not for two.
        self.tokenizer = copy.deepcopy(decoder.tokenizer)
        self._known, self._defaults = lru_cache(KINDS)(self._look_up), tuple[Any, ...]()

    @property
    def encodes(self) -> bool:
        """Whether the pair reads a source and writes another text."""
        return self.decoder.large.is_encoder_decoder

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place in the queue; taken before any work is put into a request.

        Raises:
            BusyError: too many are waiting.
            StoppedError: nothing is taken on any more.
        """
        place = self.engine.reserve()
        try:
            yield place
        finally:
            self.engine.release(place)

    def work(self, ask: Ask) -> Work:
        """What there is to decode for a request.

        Raises:
            InputError: an item or an option that cannot be used.
            Problem: more texts than a request may ask for.
        """
        total = len(ask.items) * ask.count
        if total > self.settings.items:
            raise bad(f"the request asks for {total} texts; allowed are {self.settings.items}; send several requests")
        preparer, rules, policy = self._asked(ask)
        jobs = list(preparer.jobs(ask.items, alone=len(ask.items) == 1, copies=ask.count))
        self.engine.check(jobs, rules)
        return Work(jobs, rules, ask, policy)

    def _asked(self, ask: Ask) -> tuple[Preparer, Rules, Mapping[str, Any]]:
        """What makes jobs of a request's inputs, how they are decoded, and the policy of that as a dictionary.

        Most requests to a server ask for the same, of other inputs, and it is looked up once; again where the pair says
        something else by now of what a request leaves open.
        """
        pair = self.decoder
        others = (pair.policy, pair.src_lang, pair.tgt_lang)
        if self._defaults != (vars(pair.generation_config), *others):
            self._defaults = (copy.deepcopy(vars(pair.generation_config)), *others)
            self._known.cache_clear()
        return self._known(json.dumps([dict(ask.options), ask.policy, ask.lossless, ask.salt]))

    def _look_up(self, key: str) -> tuple[Preparer, Rules, Mapping[str, Any]]:
        options, named, lossless, salt = json.loads(key)
        prompter, asked = self.decoder.asked(options)
        policy = self.decoder.resolve_policy(named, lossless=lossless, searches=asked.searches)
        rules = self.decoder.rules(policy, asked.choice(), beams=asked.beams())
        if rules.window > LONGEST_DRAFT:
            raise bad(f"the policy drafts up to {rules.window} tokens; allowed is 1 to {LONGEST_DRAFT} here", "policy")
        preparer = self.decoder.preparer(replace(prompter, tokenizer=self.tokenizer), asked, salt)
        return preparer, rules, rules.policy.to_dict()

    def writing(self, work: Work, *, live: bool) -> Writing:
        """A text of a request, of which nothing is written yet; live: its pieces are wanted as they come."""
        trimmer, scored = Trimmer(work.ask.stops, keep=work.ask.keep_stop), work.ask.options.get("logprobs") is not None
        return Writing(self.tokenizer, trimmer, scored=scored, live=live)

    async def events(self, work: Work, place: Place) -> AsyncGenerator[tuple[int, Event]]:
        """What becomes of the texts of a request as it happens, within the time a request may take.

        Args:
            work: what there is to decode.
            place: of the request.

        Raises:
            Problem: a text that will not come.
            TimeoutError: it took longer.
        """
        limit = asyncio.get_running_loop().time() + self.settings.timeout_s
        following = follow(self.engine, place, work.jobs, work.rules, self.engine.limits.rows)
        async with aclosing(following):
            while True:
                try:
                    # Not around the yield: a deadline that passes in between would hit whoever listens.
                    async with asyncio.timeout_at(limit):
                        index, event = await anext(following)
                except StopAsyncIteration:
                    return
                if isinstance(event, Failed):
                    raise of_failure(event)
                yield index, event

    async def texts(self, work: Work, place: Place) -> list[Text]:
        """All texts of a request, in order."""
        found = [Text(self.writing(work, live=False)) for _ in work.jobs]
        following = follow(self.engine, place, work.jobs, work.rules, self.engine.limits.rows, live=False)
        # Nobody listens in between, so one deadline is enough for all of it.
        async with asyncio.timeout(self.settings.timeout_s), aclosing(following):
            async for index, event in following:
                if isinstance(event, Written):
                    found[index].add(event, work.rules.window)
                elif isinstance(event, Finished):
                    found[index].end = event
                else:
                    raise of_failure(event)
        for text in found:
            text.others = [self._other(work, each) for each in text.writing.hypotheses[1 : 1 + work.ask.others]]
        return found

    def _other(self, work: Work, hypothesis: Hypothesis) -> Writing:
        """A hypothesis of a beam search as a text of its own."""
        writing, (tokens, _, reason) = self.writing(work, live=False), hypothesis
        writing.add(Commit(0, tokens, ("large",) * len(tokens), finish_reason=reason))
        return writing
