"""The verifier's end by itself: who shares passes, who loses what, and what strangers are told."""

from __future__ import annotations

import pytest
import torch

from bild.decoding import ExactMatch, Policy, RejectionSampling, Request, Row, Rules, Sampling
from bild.edge.numbers import at_verifier
from bild.edge.sessions import Refusal, cells
from bild.edge.verification import Limits, Verification
from bild.edge.wire import GONE, NO_NUMBERS, Answer, Proposal
from bild.errors import BusyError, InputError, StoppedError, TooLongError
from tests.edge.toys import ToyLarge
from tests.engine.toys import LARGE, Clock

EXACT = Rules(Policy(acceptance=ExactMatch(), verify_end=True))


def text(prompt: list[int], longest: int = 10) -> tuple[list[int], Row]:
    return [], Row(0, Request(prompt=prompt, max_new_tokens=longest), EXACT)


def likeliest(prefix: list[int]) -> int:
    return int(LARGE.logits(prefix).argmax())


class Desk:
    """A verification whose clock is set by hand."""

    def __init__(self, model: ToyLarge | None = None, **limits) -> None:
        self.clock, self.model = Clock(), ToyLarge() if model is None else model
        self.engine = Verification(self.model, Limits(**limits), self.clock)

    def open(self, *prompts: list[int], longest: int = 10) -> list[str]:
        return self.engine.open([text(each, longest) for each in prompts])

    def ask(self, *proposals: Proposal) -> list[Answer | Refusal]:
        found: dict = {}
        self.engine.ask(proposals, found.update)
        while self.engine.step():
            pass
        return [found[at] for at in range(len(proposals))]


def test_a_round_that_was_judged_is_answered_again_without_a_pass():
    desk = Desk()
    (id,) = desk.open([1, 2])
    first = likeliest([1, 2])
    proposal = Proposal(id, 2, (first, 5 if likeliest([1, 2, first]) != 5 else 4))
    (answer,) = desk.ask(proposal)
    assert (answer.accepted, answer.token) == (1, likeliest([1, 2, first]))
    assert answer.likeliest == (first, answer.token) and answer.read == 4
    passes = desk.model.passes
    assert desk.ask(proposal) == [answer] and desk.model.passes == passes
    # An older place of the text is judged anew, with another draft.
    (again,) = desk.ask(Proposal(id, 2, ()))
    assert (again.accepted, again.token) == (0, first) and desk.model.passes == passes + 1
    (onward,) = desk.ask(Proposal(id, 3, ()))
    assert onward.token == likeliest([1, 2, first]) and onward.read == 1


def test_a_device_that_vanishes_is_forgotten_and_its_memory_freed():
    desk = Desk(idle_s=60)
    one, other = desk.open([1], [2])
    desk.ask(Proposal(one, 1, ()), Proposal(other, 1, ()))
    assert (desk.engine.load.sessions, desk.engine.load.rows, desk.engine.load.cells) == (2, 2, 22)
    desk.clock.now = 59
    desk.ask(Proposal(other, 2, ()))
    desk.clock.now = 61
    assert not desk.engine.step()
    assert (desk.engine.load.sessions, desk.engine.load.rows, desk.engine.load.cells) == (1, 1, 11)
    (gone,) = desk.ask(Proposal(one, 1, ()))
    assert isinstance(gone, Refusal) and gone.code == GONE
    (still,) = desk.ask(Proposal(other, 3, ()))
    assert isinstance(still, Answer)
    desk.clock.now = 200
    desk.engine.step()
    assert (desk.engine.load.sessions, desk.engine.load.rows, desk.engine.load.requests) == (0, 0, 0)


def test_who_is_asked_for_least_gives_up_its_row_and_is_read_again():
    desk = Desk(rows=2)
    ids = desk.open([1, 2], [3], [4, 5, 6])
    for at, (id, prompt) in enumerate(zip(ids, ([1, 2], [3], [4, 5, 6]), strict=True)):
        desk.clock.now = at
        (answer,) = desk.ask(Proposal(id, len(prompt), ()))
        assert answer.token == likeliest(prompt)
    assert desk.engine.load.rows == 2 and desk.engine.load.sessions == 3
    first = likeliest([1, 2])
    (answer,) = desk.ask(Proposal(ids[0], 3, ()))
    assert answer.token == likeliest([1, 2, first]) and desk.engine.load.rows == 2


def test_more_rounds_than_rows_take_turns():
    desk = Desk(rows=2)
    prompts = [[at] for at in range(5)]
    answers = desk.ask(*(Proposal(id, 1, ()) for id in desk.open(*prompts)))
    assert [answer.token for answer in answers] == [likeliest(each) for each in prompts]
    assert desk.model.widest == 2
    narrow = Desk(cells=24)
    narrow.ask(*(Proposal(id, 1, ()) for id in narrow.open(*prompts)))
    assert narrow.model.widest == 2


def test_a_text_that_makes_passes_fail_takes_nobody_along():
    def trouble(read: list[list[int]]) -> None:
        if any(each[:2] == [6, 6] for each in read):
            raise RuntimeError("kernel")

    desk = Desk(ToyLarge(trouble))
    one, bad, other = desk.open([1], [6, 6], [2])
    found = desk.ask(Proposal(one, 1, (3,)), Proposal(bad, 2, ()), Proposal(other, 1, ()))
    assert isinstance(found[1], Refusal) and found[1].code == "verifying_failed" and "kernel" not in found[1].message
    assert found[2].token == likeliest([2])
    good = likeliest([1])
    assert found[0].accepted == int(good == 3) and desk.engine.alive
    (again,) = desk.ask(Proposal(other, 2, ()))
    assert again.token == likeliest([2, likeliest([2])])


def test_a_text_that_a_neighbours_row_makes_fail_is_tried_alone():
    """Rows whose texts are not asked for take part in a pass, too."""
    desk = Desk(ToyLarge(lambda read: (_ for _ in ()).throw(RuntimeError("kernel")) if len(read) > 1 else None))
    one, other = desk.open([1], [2])
    (first,) = desk.ask(Proposal(one, 1, ()))
    (second,) = desk.ask(Proposal(other, 1, ()))
    assert (first.token, second.token) == (likeliest([1]), likeliest([2]))


def test_drafts_of_other_lengths_are_judged_beside_each_other():
    rules = Rules(Policy(acceptance=at_verifier(RejectionSampling()), verify_end=True), Sampling())
    desk = Desk()

    def row() -> tuple[list[int], Row]:
        generator = torch.Generator().manual_seed(0)
        return [], Row(0, Request(prompt=[1], max_new_tokens=9, generator=generator), rules)

    one, other = desk.engine.open([row(), row()])
    alone = Desk()
    (only,) = alone.engine.open([row()])
    expected = alone.ask(Proposal(only, 1, (3,), (0.5,)))
    desk.ask(Proposal(one, 1, (3, 3, 3), (0.5, 0.5, 0.5)))
    assert desk.ask(Proposal(other, 1, (3,), (0.5,))) == expected and not isinstance(expected[0], Refusal)


def test_scores_that_are_not_numbers_say_so():
    class Broken(ToyLarge):
        def start(self, sources):
            scorer = super().start(sources)
            extend = scorer.extend
            scorer.extend = lambda tokens, last=1: extend(tokens, last) * float("nan")
            return scorer

    desk = Desk(Broken())
    (found,) = desk.ask(Proposal(desk.open([1])[0], 1, ()))
    assert found.code == NO_NUMBERS and "load it in a wider dtype" in found.message


def test_what_is_too_much_is_refused():
    desk = Desk(sessions=2, cells=50)
    with pytest.raises(TooLongError, match="needs room for 61 tokens, and the verifier has room for 50"):
        desk.open([1], longest=60)
    (id, _) = desk.open([1], [2], longest=3)
    with pytest.raises(BusyError, match="2 texts are open, as many as may"):
        desk.open([3])
    (long,) = desk.ask(Proposal(id, 1, (1, 1, 1, 1)))
    assert isinstance(long, Refusal) and "leaves the 4 tokens of its text" in long.message
    for place in (0, 5):
        (unknown,) = desk.ask(Proposal(id, place, ()))
        assert unknown.code == GONE
    assert desk.engine.close([id, "never"]) == 1
    desk.engine.drain()
    with pytest.raises(StoppedError, match="takes on nothing more"):
        desk.open([1])
    desk.engine.stop()
    with pytest.raises(StoppedError):
        desk.engine.ask([Proposal(id, 1, ())], lambda replies: None)


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"cells": -1}, {"sessions": True}, {"idle_s": 0}, {"wait_s": -1.0}], ids=str
)
def test_limits_that_cannot_be(wrong):
    with pytest.raises(InputError, match="allowed is"):
        Limits(**wrong)


def test_its_thread_answers_and_tells_whoever_waits_when_it_stops():
    import threading

    engine = Verification(ToyLarge(), Limits(rows=4, wait_s=0.01))
    thread, heard, told = engine.start(), threading.Event(), {}
    (id,) = engine.open([text([1, 2])])

    def hear(replies: dict) -> None:
        told.update(replies)
        heard.set()

    engine.ask([Proposal(id, 2, ())], hear)
    assert heard.wait(5) and told[0].token == likeliest([1, 2]) and engine.healthy()
    engine.stop()
    thread.join(5)
    assert not engine.alive and not engine.healthy() and cells([]) == 0
