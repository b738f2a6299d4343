"""A prompt that begins as a text before it is read from where they part, and comes out the same."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch

from bild import BigLittleDecoder
from bild.decoding import Rules
from bild.engine import Engine, Event, Failed, Finished, Limits, Written
from bild.engine.prefix_cache import WORTH
from tests.compiled import pair_of
from tests.engine.test_memory import PAIRS
from tests.networks import build

SYSTEM = [2 + at * at % 27 for at in range(WORTH + 9)]
"""What all prompts begin with."""


@dataclass
class Asker:
    """Hands texts in, and keeps what it is told of each."""

    pair: BigLittleDecoder
    engine: Engine
    events: dict[int, list[Event]] = field(default_factory=dict)

    def ask(self, *prompts: list[int], policy: str = "exact", salt: str = "", **options) -> list[int]:
        options = {"max_new_tokens": 8, "eos_token_id": 1} | options
        jobs = [self.pair.jobs(prompt, **options)[0] for prompt in prompts]
        jobs = [replace(job, request=replace(job.request, salt=salt)) for job in jobs]
        rules = Rules(self.pair.resolve_policy(policy))
        place = self.engine.reserve()
        ids = self.engine.submit(jobs, rules, self.hear, place)
        self.engine.release(place)
        return ids

    def hear(self, events: list[Event]) -> None:
        for event in events:
            self.events.setdefault(event.ticket, []).append(event)

    def run(self) -> None:
        while self.engine.step():
            pass

    def tokens(self, id: int) -> list[int]:
        return [t for event in self.events[id] if isinstance(event, Written) for t in event.commit.tokens]

    def end(self, id: int) -> Finished | Failed:
        return self.events[id][-1]

    def read(self, ids: list[int]) -> Counter[str]:
        """Tokens that each model read in the rounds of these texts."""
        found = Counter()
        for id in ids:
            for event in self.events[id]:
                if isinstance(event, Written):
                    found.update({who: work.read for who, work in event.commit.work.items()})
        return found

    @property
    def kept(self) -> int:
        """Tokens of the texts that are kept."""
        return self.engine._workers[0].batches[False, False]._prefixes.tokens


def asker(pair: BigLittleDecoder, **limits: int) -> Asker:
    return Asker(pair, pair.engine(Limits(**{"rows": 4} | limits)))


def alone(pair: BigLittleDecoder, prompt: list[int], policy: str = "exact") -> list[int]:
    return pair.generate(prompt, policy, max_new_tokens=8, eos_token_id=1)[0].token_ids


def conversations(seed: int, count: int = 10) -> list[list[int]]:
    """Prompts that begin alike: some go on from one before, some part from it early or late."""
    chance, told = random.Random(seed), [[*SYSTEM, 5, 6]]
    while len(told) < count:
        before = chance.choice(told)
        cut = chance.choice([len(before), len(before), len(before) - 3, len(SYSTEM), len(SYSTEM) - 5])
        told.append([*before[:cut], *chance.choices(range(2, 30), k=chance.choice([1, 9, 40]))][:120])
    return told


@pytest.mark.parametrize("policy", ["exact", "bild:rollback_threshold=1", "large", "speculative_sampling:window=3"])
@pytest.mark.parametrize("kind", PAIRS)
def test_every_text_is_that_of_a_pair_that_reads_it_whole(kind, policy):
    pair, chance = PAIRS[kind], random.Random(7)
    own, ids = asker(pair), {}
    for prompt in conversations(3):
        ids[own.ask(prompt, policy=policy)[0]] = prompt
        for _ in range(chance.randrange(12)):
            own.engine.step()
    own.run()
    for id, prompt in ids.items():
        assert own.tokens(id) == alone(pair, prompt, policy)
    assert sum(own.end(id).known for id in ids) >= 4 * WORTH


@pytest.mark.compiles
def test_compiled_models_too():
    pair, chance = pair_of("llama", "qwen2", "static"), random.Random(8)
    own, ids = asker(pair), {}
    # These have room for 64 tokens.
    for prompt in (prompt[:54] for prompt in conversations(4)):
        ids[own.ask(prompt)[0]] = prompt
        for _ in range(chance.randrange(12)):
            own.engine.step()
    own.run()
    for id, prompt in ids.items():
        assert own.tokens(id) == alone(pair, prompt)
    assert sum(own.end(id).known for id in ids) >= 4 * WORTH


def test_the_next_turn_of_a_conversation_reads_what_is_new():
    own = asker(PAIRS["small"])
    (first,) = own.ask(SYSTEM)
    own.run()
    longer = [*SYSTEM, *own.tokens(first)[:-1], 7, 8]
    (second,) = own.ask(longer)
    own.run()
    (anew,) = (other := asker(PAIRS["small"], prefix_tokens=0)).ask(longer)
    other.run()
    assert own.end(first).known == 0 and own.end(second).known == len(longer) - 2
    assert own.end(second).prompt == len(longer)
    read, whole = own.read([second]), other.read([anew])
    assert [whole[who] - read[who] for who in ("large", "small")] == [len(longer) - 2] * 2


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_prompt_that_is_asked_for_several_times_is_read_once(lanes):
    pair = PAIRS["small"]
    prompt = [*SYSTEM, *range(2, 30), *range(2, 30)]
    own = Asker(pair, pair.engine(Limits(rows=8), lanes=lanes))
    ids = own.ask(*[prompt] * 4)
    while any([own.engine.step(lane) for lane in range(lanes)]):
        pass
    assert [own.tokens(id) for id in ids] == [alone(pair, prompt)] * 4
    known = sorted(own.end(id).known for id in ids)
    # Each lane has a batch of its own, and none waits for another.
    assert known[lanes:] == [len(prompt) - 1] * (4 - lanes)


def test_texts_of_different_salt_know_nothing_of_each_other():
    pair = PAIRS["small"]
    prompt = [*SYSTEM, *range(2, 30), *range(2, 30)]
    own = asker(pair, rows=8)
    # Long ones that come together, where one would wait for the other; and one that comes later.
    together = [*own.ask(prompt, prompt, salt="a"), *own.ask(prompt, prompt, salt="b"), *own.ask(prompt)]
    own.run()
    later = own.ask(prompt, salt="b")
    own.run()
    assert [own.tokens(id) for id in (*together, *later)] == [alone(pair, prompt)] * 6
    known = len(prompt) - 1
    assert [own.end(id).known for id in (*together, *later)] == [0, known, 0, known, 0, known]


def test_whoever_waits_for_a_prompt_goes_on_when_its_owner_leaves():
    pair = PAIRS["small"]
    prompt = [*SYSTEM, *range(2, 30), *range(2, 30)]
    own = asker(pair)
    first, *others = own.ask(prompt, prompt, [*prompt[:-1], 3])
    own.engine.step()
    own.engine.cancel([first])
    own.run()
    assert isinstance(own.end(first), Failed)
    assert [own.tokens(id) for id in others] == [alone(pair, prompt), alone(pair, [*prompt[:-1], 3])]


def test_a_text_that_is_cancelled_is_kept_as_far_as_it_came():
    own = asker(PAIRS["small"])
    (first,) = own.ask(SYSTEM, max_new_tokens=60, eos_token_id=None)
    while len(own.events.get(first, [])) < 3:
        own.engine.step()
    own.engine.cancel([first])
    own.run()
    (second,) = own.ask([*SYSTEM, *own.tokens(first), 9])
    own.run()
    assert own.end(second).known == len(SYSTEM) + len(own.tokens(first)) - 1


def test_what_was_used_last_is_kept_and_never_more_than_was_said():
    limit = 3 * len(SYSTEM)
    own, others = asker(PAIRS["small"], prefix_tokens=limit), {}
    for seed in range(6):
        prompt = random.Random(seed).choices(range(2, 30), k=len(SYSTEM))
        others[seed] = prompt
        own.ask(prompt)
        own.run()
        assert 0 < own.kept <= limit
        # The first is asked for again and again.
        own.ask(others[0])
        own.run()
    ids = [own.ask(others[seed])[0] for seed in (0, 1)]
    own.run()
    assert [own.end(id).known for id in ids] == [len(SYSTEM) - 1, 0]


def test_a_longer_text_takes_the_place_of_its_beginning():
    own = asker(PAIRS["small"])
    prompt = list(SYSTEM)
    for _ in range(3):
        (id,) = own.ask(prompt)
        own.run()
        prompt = [*prompt, *own.tokens(id), 4]
    assert own.kept == len(prompt) - 2


def test_other_models_alone_have_texts_of_their_own():
    pair = PAIRS["small"]
    own = asker(pair)
    for policy in ("exact", "small", "large", "small", "bild"):
        (id,) = own.ask(SYSTEM, policy=policy)
        own.run()
        assert own.tokens(id) == alone(pair, SYSTEM, policy)


def test_after_a_failure_nobody_goes_on_from_what_was_read_before(monkeypatch):
    pair = PAIRS["small"]
    own = asker(pair)
    own.ask(SYSTEM)
    own.run()
    assert own.kept
    lane = own.engine._workers[0].batches[False, False]
    monkeypatch.setattr(lane, "_round", fail_once(lane._round))
    (id,) = own.ask([*SYSTEM, 3])
    own.engine.step()
    assert own.kept == 0
    own.run()
    assert own.tokens(id) == alone(pair, [*SYSTEM, 3])


def fail_once(act):
    failed = []

    def wrapped(batch):
        if not failed:
            failed.append(True)
            raise RuntimeError("a pass failed")
        return act(batch)

    return wrapped


def test_networks_that_were_changed_read_anew():
    pair = BigLittleDecoder(build("llama", seed=1, dtype=torch.float64), build("llama", seed=2, dtype=torch.float64))
    own = asker(pair)
    own.ask(SYSTEM)
    own.run()
    pair.large.network.model.layers[0] = build("llama", seed=9, dtype=torch.float64).model.layers[0]
    (id,) = own.ask([*SYSTEM, 3])
    own.run()
    assert own.end(id).known == 0 and own.tokens(id) == alone(pair, [*SYSTEM, 3])


def test_encoders_keep_nothing():
    pair = BigLittleDecoder(build("t5"), build("t5", seed=1))
    assert pair.engine()._workers[0].batches[False, False]._prefixes is None


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("kind", PAIRS)
def test_texts_of_one_call_read_what_they_begin_with_once_or_twice(kind, width):
    pair = PAIRS[kind]
    prompts = [[*SYSTEM, *random.Random(seed).choices(range(2, 30), k=1 + seed)] for seed in range(8)]
    found = list(pair.generate_each(prompts, "exact", batch_size=width, max_new_tokens=8, eos_token_id=1))
    assert [each.token_ids for each in found] == [alone(pair, prompt) for prompt in prompts]
    read = [sum(commit.work["large"].read for commit in each.rounds) for each in found]
    # One of a batch is read before its rounds and is kept, and all others go on from it. One by one, nobody knows of
    # the first that others follow: it is read with its rounds. A small model that reads states lets the large one read
    # before a round.
    assert read[0] >= len(prompts[0]) or kind == "states" or width > 1
    assert sum(count < len(SYSTEM) for count in read) >= 6
    assert width == 1 or all(count < len(prompt) for count, prompt in zip(read, prompts, strict=True))


@pytest.mark.parametrize("width", [1, 2])
def test_several_texts_of_a_prompt_read_it_once(width):
    pair, prompt = PAIRS["small"], [*SYSTEM, 5, 6, 7]
    asked = {"max_new_tokens": 8, "do_sample": True, "seed": 3, "batch_size": width}
    found = pair.generate(prompt, "speculative_sampling:window=3", num_return_sequences=3, **asked)
    expected = pair.generate([prompt] * 3, "speculative_sampling:window=3", **asked)
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    read = [[sum(c.work["large"].read for c in each.rounds) for each in results] for results in (found, expected)]
    assert max(read[0]) < len(prompt) and (max(read[1]) > len(prompt)) == (width == 1)


def test_a_prompt_that_nobody_else_begins_with_is_not_kept(monkeypatch):
    pair, kept = PAIRS["small"], []
    monkeypatch.setattr("bild.engine.prefix_cache.PrefixCache._add", lambda cache, new: kept.append(len(new.tokens)))
    prompts = [random.Random(seed).choices(range(2, 30), k=60) for seed in range(4)]
    list(pair.generate_each(prompts, "exact", batch_size=2, max_new_tokens=8))
    assert kept == []
    list(pair.generate_each([*prompts, prompts[0]], "exact", batch_size=2, max_new_tokens=8))
    assert kept == [59]
