"""What a GPU runs: passes that are recorded and replayed, and several tokens written without a look at the host."""

from __future__ import annotations

import logging
from random import Random

import pytest
import torch

from bild.decoding import AdaptiveConfidence, ExactMatch, ModelDrafter, Policy, Request, decode
from bild.models import CompiledScorer
from bild.models.compiled import recording
from bild.models.compiled.calling import Graphs
from bild.models.compiled.recording import Recorded, Recording
from tests.compiled import recorded, static_model
from tests.networks import EOS, build, perturbed, random_source, random_tokens

POLICIES = {
    "bild": Policy.preset("bild", fallback_threshold=0.5, rollback_threshold=2.0),
    "exact": Policy.preset("exact"),
    "speculative": Policy.preset("no_fallback", rollback_threshold=2.0),
    "adaptive": Policy(hand_over=AdaptiveConfidence(0.5), acceptance=ExactMatch(), verify_end=True),
    "small": Policy.preset("small"),
}


def described(commits):
    return [
        (commit.row, commit.tokens, commit.draft, commit.accepted, commit.reason, commit.doubtful, commit.finish_reason)
        for commit in commits
    ]


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_tokens_written_without_a_look_are_those_written_one_by_one(name, policy, at_once, monkeypatch):
    rng = Random(at_once)
    large = build(name, seed=1)
    models = [recorded(large), recorded(perturbed(large, 0.3))]
    sources = [random_source(rng, large) for _ in range(3)]
    prompts = [[0, *random_tokens(rng, count)] for count in (0, 3, 1)]
    texts = []
    for rolls in (False, True):
        for model in models:
            model.graphs.at_once = at_once
        if not rolls:
            monkeypatch.setattr(CompiledScorer, "rolls", False)
            monkeypatch.setattr(Graphs, "rounded", lambda self, count: count)
        scorers = [model.start(sources) for model in models]
        assert scorers[1].rolls is rolls
        requests = [Request(prompt=prompt, eos_token_ids=frozenset([EOS]), max_new_tokens=25) for prompt in prompts]
        commits = decode(requests, POLICIES[policy], large=scorers[0], drafter=ModelDrafter(scorers[1]))
        texts.append(described(commits))
        monkeypatch.undo()
    assert texts[0] == texts[1]
    assert any(len(draft) > 1 for _, _, draft, *_ in texts[0]) or policy == "small"


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
@pytest.mark.parametrize("policy", ["bild", "small"])
def test_rows_that_write_on_are_carried_alone(name, policy, monkeypatch):
    """Compiled, with places and (GPT-2 here) without: as token by token with all rows in every pass."""
    model, rng, texts = static_model(name), Random(3), []
    sources = [random_source(rng, model.network) for _ in range(7)]
    prompts = [[0, *random_tokens(rng, rng.randint(0, 4))] for _ in sources]
    for rolls in (False, True):
        if not rolls:
            monkeypatch.setattr(CompiledScorer, "rolls", False)
        requests = [
            Request(prompt=prompt, eos_token_ids=frozenset([EOS]), max_new_tokens=rng.randint(5, 30))
            for prompt, rng in zip(prompts, map(Random, range(7)), strict=True)
        ]
        large, small = model.start(sources), model.start(sources)
        texts.append(described(decode(requests, POLICIES[policy], large=large, drafter=ModelDrafter(small))))
        monkeypatch.undo()
    assert texts[0] == texts[1]
    # Hand-overs at different places, so that rows stop while others go on.
    assert len({len(draft) for _, _, draft, *_ in texts[0]}) > 3


def test_a_rule_that_looks_at_logits_is_given_them():
    network = build("llama", seed=1)
    models = [recorded(network), recorded(perturbed(network, 0.3))]
    policy = Policy.preset("bild", measure="margin", fallback_threshold=0.3)
    large, small = (model.start([[]]) for model in models)
    small.roll = None  # would fail
    request = Request(prompt=[0, 5], eos_token_ids=frozenset([EOS]), max_new_tokens=12)
    assert list(decode([request], policy, large=large, drafter=ModelDrafter(small)))


class Tape:
    """A recording as CUDA makes it: it computes from the memory it was made with, into the memory it was made with."""

    def __init__(self, function, arguments, outputs):
        self.function, self.arguments, self.outputs = function, arguments, outputs

    def replay(self):
        for kept, result in zip(self.outputs, self.function(self.arguments), strict=True):
            kept.copy_(result)


@pytest.fixture
def taped(monkeypatch):
    def record(self, tensors, moved):
        inputs = {place: tensors[place].clone() for place in moved}
        arguments = [inputs.get(place, each) for place, each in enumerate(tensors)]
        outputs = [torch.zeros_like(each) for each in self._function(arguments)]
        self.recordings += 1
        return Recording(Tape(self._function, arguments, outputs), inputs, outputs)

    monkeypatch.setattr(Recorded, "_record", record)


def test_replays_read_new_small_inputs_and_results_belong_to_the_caller(taped):
    double = Recorded(lambda tensors: [tensors[0] * 2 + tensors[1]])
    storage = torch.tensor([10, 20])
    first, second, third = (double([torch.tensor([n, n]), storage], (0,))[0] for n in (1, 2, 3))
    assert [each.tolist() for each in (first, second, third)] == [[12, 22], [14, 24], [16, 26]]
    assert double.recordings == 1


def test_other_memory_or_another_shape_is_another_recording(taped):
    double = Recorded(lambda tensors: [tensors[0] * 2 + tensors[1]])
    one, other = torch.tensor([10, 20]), torch.tensor([30, 40])
    for _ in range(3):
        assert double([torch.tensor([1, 1]), one], (0,))[0].tolist() == [12, 22]
        assert double([torch.tensor([1, 1]), other], (0,))[0].tolist() == [32, 42]
        assert double([torch.tensor([[1, 1]]), one], (0,))[0].tolist() == [[12, 22]]
    assert double.recordings == 3


def test_the_recording_not_used_for_longest_goes_first(taped, monkeypatch):
    monkeypatch.setattr(recording, "MOST", 2)
    double = Recorded(lambda tensors: [tensors[0] + tensors[1]])
    places = [torch.tensor([n]) for n in range(3)]
    for place in (0, 0, 1, 1, 0, 2, 2, 0):
        assert double([torch.tensor([1]), places[place]], (0,))[0].tolist() == [1 + place]
    assert double.recordings == 3
    double([torch.tensor([1]), places[1]], (0,))
    double([torch.tensor([1]), places[1]], (0,))
    assert double.recordings == 4


def test_what_cannot_be_recorded_runs_all_the_same(caplog):
    if torch.cuda.is_available():
        pytest.skip("can be recorded here")
    double = Recorded(lambda tensors: [tensors[0] * 2 + tensors[1]])
    with caplog.at_level(logging.WARNING, "bild"):
        results = [double([torch.tensor([n]), torch.zeros(1)], (0,))[0].item() for n in range(4)]
    assert results == [0, 2, 4, 6]
    assert sum("cannot be recorded" in line for line in caplog.messages) <= 1
