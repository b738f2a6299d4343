"""A drafter that asks a controller how long its drafts may be, on real rows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bild.decoding import Batch, LocalVerifier, ModelDrafter, Policy, Request, Row, Rules, Sampling, decode
from bild.edge.recording import record
from bild.edge.window import CostAware, Ema, Fixed, Windowed
from bild.engine import Job, Models
from tests.engine.toys import LARGE, SMALL
from tests.toy import ToyModel, ToyScorer


class Ticking:
    """A clock that a step takes one second of."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def batch(requests: list[Request], policy: Policy, controller, choice=None) -> Batch:
    rules = Rules(policy) if choice is None else Rules(policy, choice)
    rows = [Row(index, request, rules) for index, request in enumerate(requests)]
    drafter = Windowed(ModelDrafter(ToyScorer(SMALL, len(rows))), controller, Ticking())
    return Batch(rows, LocalVerifier(ToyScorer(LARGE, len(rows))), drafter, 7)


def run(own: Batch) -> list[list]:
    found: list[list] = [[] for _ in own.rows]
    while own.rows:
        for commit in own.round():
            found[commit.row].append(commit)
    return found


@pytest.mark.parametrize("controller", [lambda: Fixed(2), Ema, CostAware])
def test_the_text_of_an_exact_rule_is_the_same_and_each_row_has_a_window_of_its_own(controller):
    requests = [Request(prompt=[at % 7, 3], max_new_tokens=20) for at in range(4)]
    policy = Policy.exact(fallback_threshold=0, max_draft_tokens=12)
    found = run(batch(requests, policy, controller))
    for request, own in zip(requests, found, strict=True):
        alone = decode([request], Policy.large(), large=ToyScorer(LARGE))
        assert [t for c in own for t in c.tokens] == [t for c in alone for t in c.tokens]
        if controller is not CostAware:
            # By acceptance alone, so that neighbours leave no trace.
            (single,) = run(batch([request], policy, controller))
            assert [c.draft for c in single] == [c.draft for c in own]
    longest = {max(len(commit.draft) for commit in own) for own in found}
    assert max(longest) == 2 if controller not in (Ema, CostAware) else max(longest) > 3


def test_rejection_sampling_stays_lossless_under_a_window_that_learns():
    """Chi-square of the first three tokens against the large model's own distribution."""
    large = ToyModel(2, vocab_size=3, blend=0.5, scale=1.2)
    small = ToyModel(1, vocab_size=3, blend=0.5, scale=1.2)
    count, seen = 1200, Counter()

    def eager() -> Ema:
        return Ema(gain=2.0, decay=0.2, size=1.6)

    requests = [
        Request(prompt=[1], max_new_tokens=3, generator=torch.Generator().manual_seed(seed)) for seed in range(count)
    ]
    for start in range(0, count, 400):
        rows = [Row(b, each, Rules(Policy.speculative_sampling(window=3), Sampling())) for b, each in
                enumerate(requests[start : start + 400])]  # fmt: skip
        own = Batch(rows, LocalVerifier(ToyScorer(large, 400)), Windowed(ModelDrafter(ToyScorer(small, 400)), eager), 3)
        seen.update(tuple(t for c in commits for t in c.tokens) for commits in run(own))
    chi = 0.0
    for first in range(3):
        for second in range(3):
            for third in range(3):
                chance, prefix = 1.0, [1]
                for token in (first, second, third):
                    chance *= float(large.logits(prefix).softmax(-1)[token])
                    prefix.append(token)
                chi += (seen[(first, second, third)] - count * chance) ** 2 / (count * chance)
    # 26 degrees of freedom: above 54 once in a thousand.
    assert sum(seen.values()) == count and chi < 54


class ToyNetwork:
    """Begins texts of a toy."""

    def __init__(self, model: ToyModel) -> None:
        self.model, self.vocab_size = model, 7

    def start(self, sources, encoded=None) -> ToyScorer:
        return ToyScorer(self.model, len(sources))


def test_a_recording_is_what_decoding_does():
    jobs = [Job([], Request(prompt=[at % 7, 2], max_new_tokens=45)) for at in range(2)]
    found = record(Models(ToyNetwork(LARGE), ToyNetwork(SMALL)), jobs, "toys")
    for window in (1, 4, 9):
        for job, text in zip(jobs, found.texts, strict=True):
            policy = Policy.exact(fallback_threshold=0, max_draft_tokens=window)
            drafter = ModelDrafter(ToyScorer(SMALL))
            commits = list(decode([job.request], policy, large=ToyScorer(LARGE), drafter=drafter))
            at = 0
            for commit in commits:
                _, kept, at = text.round(at, window)
                assert kept == commit.accepted
            assert at == len(text) == sum(len(commit.tokens) for commit in commits)
    assert 0.2 < found.alpha < 0.95 and found.texts[0].source == 2
