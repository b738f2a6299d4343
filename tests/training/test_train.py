"""Training from the first text to the checkpoint, and what may happen on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import bild
from bild.errors import InputError, LoadError
from bild.training import Start, job, loop, train
from bild.training import checkpoint as on_disk
from bild.training.dev import DevScore
from bild.training.losses import Objective
from bild.training.optimizer import Together
from tests.training.tiny import (
    SHAPES,
    checkpoint,
    copies,
    data_of,
    kill_in,
    killing,
    recipe,
    same_weights,
    save_tokenizer,
    settings,
    weights,
)

ROWS = copies(120)


@pytest.fixture(scope="module")
def copier(tmp_path_factory) -> Path:
    """A network that was taught to copy in 200 steps."""
    out = tmp_path_factory.mktemp("copier")
    tokenizer = save_tokenizer(out / "words")
    shape = "t5:d_model=64,d_kv=16,d_ff=128,num_layers=1,num_decoder_layers=2,num_heads=4"
    chosen = recipe(lr=1e-2, batch_tokens=1500, max_steps=200)
    dev = data_of(copies(100, seed=1, longest=4), "dev")
    train(
        Start(shape=shape, tokenizer=tokenizer),
        data_of(copies(4000, longest=4)),
        out / "run",
        chosen,
        dev=dev,
        settings=settings(metric="exact_match", save_minutes=60),
    )
    return out / "run"


def test_learns_to_copy(copier):
    """Of texts it never saw, through the saved folder."""
    pair = bild.BigLittleDecoder.from_pretrained(large=str(copier), small=str(copier), dtype="float32", device="cpu")
    unseen = [row["source"] for row in copies(200, seed=2, longest=4)]
    written = [result.text for result in pair.generate(unseen, "exact", batch_size=50, max_new_tokens=10)]
    assert sum(source == text for source, text in zip(unseen, written, strict=True)) > 0.95 * len(unseen)
    facts = json.loads((copier / "training.json").read_text())
    assert facts["state"]["best"] > 95 and facts["state"]["finished"] and facts["state"]["step"] == 200
    assert not list(copier.glob("step-*"))


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_run_killed_anywhere_ends_with_the_same_weights(tmp_path, kind, monkeypatch):
    """With dropout, so that random numbers count too; scored on the way, so that the best result counts."""
    start = Start(checkpoint=checkpoint(tmp_path / "start", kind))
    dev = data_of(copies(8, seed=1), "dev")

    def run(out: Path) -> None:
        watched = settings(eval_every=4, log_every=3, metric="chrf")
        train(start, data_of(ROWS), out, recipe(lr=1e-2, dropout=0.1), dev=dev, settings=watched)

    run(tmp_path / "whole")
    points = [
        (Objective, "forward", 5, False),
        (Together, "step", 1, True),
        (Together, "step", 3, False),
        (on_disk, "save_file", 2, False),
        (DevScore, "__call__", 1, False),
        (DevScore, "__call__", 1, True),
        (on_disk.os, "replace", 1, False),
        (on_disk.RunFolder, "finish", 1, False),
    ]
    for place, name, call, after in points:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killing(getattr(place, name), call, after=after))
            kill_in(lambda: run(tmp_path / "killed"))
    run(tmp_path / "killed")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert not same_weights(tmp_path / "start", tmp_path / "killed")
    whole, killed = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "killed"))
    assert [whole["state"].pop("seconds") > 0, killed["state"].pop("seconds") > 0] == [True, True]
    assert killed["state"] == whole["state"] and whole["state"]["step"] == 12
    assert whole["examples"] == killed["examples"]
    logs = [
        [json.loads(line)["step"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1] == [3, 4, 6, 8, 9, 12, 12]


def test_a_run_killed_in_its_last_dev_score_has_nothing_to_learn_again(tmp_path, monkeypatch):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    dev = data_of(copies(8, seed=1), "dev")

    def run(out: Path) -> None:
        train(start, data_of(ROWS), out, recipe(), dev=dev, settings=settings(metric="chrf", save_minutes=60))

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(DevScore, "__call__", killing(DevScore.__call__, 1))
        kill_in(lambda: run(tmp_path / "killed"))
    monkeypatch.setattr(job, "run", None)
    run(tmp_path / "killed")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert not same_weights(tmp_path / "start", tmp_path / "killed")


def test_without_a_dev_set_the_last_weights_are_kept(tmp_path):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    for name, steps in (("two", 2), ("two-again", 2), ("three", 3)):
        train(start, data_of(ROWS), tmp_path / name, recipe(max_steps=steps, schedule="constant"), settings=settings())
    assert same_weights(tmp_path / "two", tmp_path / "two-again")
    assert not same_weights(tmp_path / "two", tmp_path / "three")


def test_the_best_checkpoint_is_kept_and_training_stops(tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 40.0])
    kept = []

    def score(self, network, tokenizer):
        kept.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return {"dev": next(scores)}

    monkeypatch.setattr(DevScore, "__call__", score)
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    dev = data_of(ROWS[:3], "dev")
    watched = settings(eval_every=1, patience=2)
    state = train(start, data_of(ROWS), tmp_path / "out", recipe(lr=1e-2), dev=dev, settings=watched)
    assert (state.best, state.best_step, state.step, state.finished) == (30.0, 2, 4, True)
    assert [score["mean"] for score in state.scores] == [10.0, 30.0, 20.0, 25.0]
    result = weights(tmp_path / "out")
    for at in range(4):
        assert all(torch.equal(result[name], kept[at][name]) for name in result) == (at == 1)


def test_a_finished_run_is_left_alone(tmp_path, capsys, monkeypatch):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    arguments = (start, data_of(ROWS), tmp_path / "out", recipe(max_steps=2))
    first = train(*arguments, settings=settings())
    monkeypatch.setattr(job, "run", None)
    assert train(*arguments, settings=settings()) == first
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path / 'out'} is finished; --fresh starts anew"
    with pytest.raises(InputError, match=r"recipe\.max_steps is 2 there and 3 here"):
        train(*arguments[:3], recipe(max_steps=3), settings=settings())


def test_provenance_says_what_was_done(tmp_path):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    rows = [*ROWS, ROWS[0]]
    chosen = recipe(max_steps=2)
    train(start, data_of(rows), tmp_path / "out", chosen, settings=settings(arguments={"lr": 5}))
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["arguments"] == {"lr": 5} and facts["start"]["checkpoint"] == start.checkpoint
    assert facts["recipe"]["lr"] == 3e-4 and facts["data"] == {"train": data_of(rows)["train"].digest}
    assert facts["examples"]["used"] == len({row["source"] for row in rows})
    assert facts["examples"]["left_out"]["duplicate"] == len(rows) - facts["examples"]["used"]
    assert {"torch", "transformers", "bild"} <= set(facts["machine"]["versions"])
    assert facts["state"]["step"] == 2 and facts["state"]["tokens"] > 0


def test_the_result_comes_in_the_format_of_its_beginning(tmp_path):
    place = checkpoint(tmp_path / "start")
    rounded = bild.models.load_network(place, dtype=torch.bfloat16, device=torch.device("cpu"))
    rounded.save_pretrained(tmp_path / "start")
    start, chosen = Start(checkpoint=place), recipe(max_steps=2)
    train(start, data_of(ROWS), tmp_path / "out", chosen, settings=settings())
    assert {weight.dtype for weight in weights(tmp_path / "out").values()} == {torch.bfloat16}
    train(start, data_of(ROWS), tmp_path / "full", chosen, settings=settings(save_dtype="float32"))
    full = weights(tmp_path / "full")
    assert {weight.dtype for weight in full.values()} == {torch.float32}
    assert all(torch.equal(weight.bfloat16(), weights(tmp_path / "out")[name]) for name, weight in full.items())


def test_a_loss_that_is_not_a_number_stops_before_it_does_harm(tmp_path, monkeypatch):
    place = checkpoint(tmp_path / "start")
    start, chosen = Start(checkpoint=place), recipe(batch_tokens=None, batch_size=7, max_steps=6)
    forward, calls = Objective.forward, []

    def broken(self, labels, **inputs):
        calls.append(1)
        return forward(self, labels, **inputs) * (math.nan if len(calls) == 4 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", broken)
        with pytest.raises(InputError) as caught:
            train(start, data_of(ROWS), tmp_path / "out", chosen, settings=settings())
    message = str(caught.value)
    assert message.startswith("the loss is not a number at step 4; its batch is train line ")
    assert message.count("train line") == 5 and " and 2 more; try a lower --lr" in message
    assert [folder.name for folder in (tmp_path / "out").glob("step-*")] == ["step-3"]
    # What was computed until then is of use: the repaired run ends as one that never failed.
    train(start, data_of(ROWS), tmp_path / "out", chosen, settings=settings())
    train(start, data_of(ROWS), tmp_path / "whole", chosen, settings=settings())
    assert same_weights(tmp_path / "out", tmp_path / "whole")


def test_a_gradient_that_is_not_a_number_stops_too(tmp_path, monkeypatch):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    forward = Objective.forward
    # Zero, but of infinite slope.
    monkeypatch.setattr(
        Objective, "forward", lambda self, labels, **inputs: (0 * forward(self, labels, **inputs)).sqrt()
    )
    with pytest.raises(InputError, match="the gradient is not a number at step 1; its batch is train line"):
        train(start, data_of(ROWS), tmp_path / "out", recipe(), settings=settings())


def test_a_pair_from_nothing_works_through_its_folder(tmp_path):
    """A tokenizer of its own, a large and a small network, then bild generate."""
    texts = ["der Hund läuft", "die Katze schläft", "der Hund schläft", "die Katze läuft", "das Kind spielt"]
    english = ["the dog runs", "the cat sleeps", "the dog sleeps", "the cat runs", "the child plays"]
    rows = [{"source": de, "target": en} for de, en in zip(texts, english, strict=True)]
    chosen = recipe(lr=1e-2, max_steps=60)
    large = Start(shape=SHAPES["t5"], vocab_size=60)
    train(large, data_of(rows), tmp_path / "large", chosen, settings=settings(save_minutes=60))
    small = Start(shape=SHAPES["t5"].replace("layers=2", "layers=1"), tokenizer=str(tmp_path / "large"))
    train(small, data_of(rows), tmp_path / "small", chosen, settings=settings(save_minutes=60))
    pair = bild.BigLittleDecoder.from_pretrained(tmp_path, dtype="float32", device="cpu")
    assert [result.text for result in pair.generate(texts)] == english
    assert pair.generate(texts[:1])[0].stats.num_draft_tokens > 0
    assert pair.small.network.config.num_decoder_layers == 1
    assert len(pair.tokenizer) == pair.large.network.config.vocab_size < 60


def test_a_new_tokenizer_is_made_once(tmp_path, monkeypatch):
    from bild.training import job, vocabulary

    start = Start(shape=SHAPES["gpt2"], vocab_size=30)
    with monkeypatch.context() as patch:
        patch.setattr(job, "Job", None)
        with pytest.raises(TypeError):
            train(start, data_of(ROWS), tmp_path / "out", recipe(max_steps=2), settings=settings())
    kept = (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_bytes()
    monkeypatch.setattr(vocabulary, "make_tokenizer", None)
    train(start, data_of(ROWS), tmp_path / "out", recipe(max_steps=2), settings=settings())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == kept


def test_dropout_is_what_the_recipe_says(tmp_path):
    place = checkpoint(tmp_path / "start")
    tokenizer = Start(checkpoint=place).load_tokenizer()
    rates = {
        dropout: Start(checkpoint=place).load_config(tokenizer, recipe(dropout=dropout)).dropout_rate
        for dropout in (0.0, 0.3)
    }
    assert rates == {0.0: 0.0, 0.3: 0.3}
    assert Start(checkpoint=place).load_config(tokenizer, recipe_without_dropout()).dropout_rate == 0.1
    gpt2 = Start(shape=SHAPES["gpt2"], tokenizer=place).load_config(tokenizer, recipe(dropout=0.25))
    assert (gpt2.resid_pdrop, gpt2.embd_pdrop, gpt2.attn_pdrop) == (0.25, 0.25, 0.25)


class OnTheCpu:
    """What a recorder does, unrecorded."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.shapes = objective, set()

    def __call__(self, inputs):
        assert all(module.training for module in self.objective.network.modules())
        self.shapes.add(inputs["labels"].shape)
        loss = self.objective(**inputs)
        loss.backward()
        return loss.detach()


def test_recorded_steps_drop_out_and_have_few_shapes(tmp_path, monkeypatch):
    """Where a step is recorded the Trainer's own does not run, which is what tells a network that it is trained."""
    recorders = []

    def recorder(objective):
        recorders.append(OnTheCpu(objective))
        return recorders[-1]

    monkeypatch.setattr(job, "pays", lambda objective: True)
    monkeypatch.setattr(loop, "Recorder", recorder)
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    chosen = recipe(dropout=0.3, batch_tokens=100, max_steps=20)
    state = train(start, data_of(ROWS), tmp_path / "run", chosen, settings=settings())
    assert state.step == 20 and recorders[0].shapes == {(12, 4), (6, 8)}
    assert not same_weights(tmp_path / "start", tmp_path / "run")


def test_a_network_that_cannot_be_recorded_is_trained_as_it_is(tmp_path, monkeypatch, capsys):
    def refuse(inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(job, "pays", lambda objective: True)
    monkeypatch.setattr(loop, "Recorder", lambda objective: refuse)
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    assert train(start, data_of(ROWS), tmp_path / "run", recipe(), settings=settings()).step == 12
    said = capsys.readouterr().err
    assert said.count("steps are not recorded, which is slower: RuntimeError: operation not permitted") == 1


def recipe_without_dropout():
    return bild.training.Recipe.preset("paper", max_steps=1)


def test_random_weights_follow_the_seed(tmp_path):
    start = Start(shape=SHAPES["t5"], tokenizer=save_tokenizer(tmp_path / "words"))
    tokenizer = start.load_tokenizer()

    def embedding(seed: int) -> torch.Tensor:
        chosen = recipe(seed=seed)
        config = start.load_config(tokenizer, chosen)
        return start.load_network(config, tokenizer, chosen, torch.device("cpu")).shared.weight

    assert torch.equal(embedding(1), embedding(1)) and not torch.equal(embedding(1), embedding(2))


@pytest.mark.parametrize(
    ("begin", "error", "says"),
    [
        ({}, InputError, "0 beginnings are given; allowed is one of --model, --config, --shape"),
        ({"shape": "t5", "config": "x"}, InputError, "2 beginnings"),
        ({"checkpoint": "x", "vocab_size": 50}, InputError, "a new tokenizer is for a new network"),
        ({"shape": "t6:d_model=4", "tokenizer": "WORDS"}, InputError, "no network is of type 't6'"),
        ({"shape": "t5:depth=4", "tokenizer": "WORDS"}, InputError, "'depth=4' sets nothing a t5 has"),
        ({"shape": "t5:d_model", "tokenizer": "WORDS"}, InputError, "'d_model' sets nothing"),
        ({"shape": "bert:hidden_size=4", "tokenizer": "WORDS"}, LoadError, "bert model does not generate text"),
        ({"shape": "gpt2:n_embd=5,n_head=2", "tokenizer": "WORDS"}, InputError, "no network has this shape"),
        ({"shape": "t5:d_model=4"}, InputError, "there is no tokenizer; name one with --tokenizer"),
        ({"checkpoint": "/no/such"}, LoadError, "no such folder"),
    ],
)
def test_beginnings_that_are_none(tmp_path, begin, error, says):
    words = save_tokenizer(tmp_path / "words")
    given = {name: words if value == "WORDS" else value for name, value in begin.items()}
    with pytest.raises(error, match=says):
        train(Start(**given), data_of(ROWS), tmp_path / "out", recipe(), settings=settings())


def test_a_tokenizer_larger_than_the_network(tmp_path):
    place = checkpoint(tmp_path / "start")
    words = save_tokenizer(tmp_path / "words")
    tokenizer = Start(checkpoint=place, tokenizer=words).load_tokenizer()
    tokenizer.add_tokens([f"more{number}" for number in range(9)])
    tokenizer.save_pretrained(words)
    with pytest.raises(LoadError, match="the tokenizer has 49 pieces and the network embeds 40"):
        train(Start(checkpoint=place, tokenizer=words), data_of(ROWS), tmp_path / "out", recipe(), settings=settings())


def test_data_without_targets(tmp_path):
    from bild.data import Data, Example

    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    sets = {"train": Data("train", [Example("1", "w2"), Example("2", "w3")])}
    with pytest.raises(InputError, match=r"nothing to train on: 0 of 2 examples; left out: 2 no target text \(first: "):
        train(start, sets, tmp_path / "out", recipe(), settings=settings())
    with pytest.raises(InputError, match="dev set train, line 1: no target text"):
        train(start, data_of(ROWS), tmp_path / "other", recipe(), dev=sets, settings=settings())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eval_every": 0}, "eval_every is 0; allowed is 1 or more"),
        ({"save_minutes": -1.0}, "save_minutes is -1.0"),
        ({"dtype": "float16"}, "dtype is 'float16'; training allows auto, float32, bfloat16"),
        ({"save_dtype": "int8"}, "save_dtype is 'int8'"),
    ],
)
def test_settings_out_of_range(changes, says):
    with pytest.raises(InputError, match=says):
        settings(**changes)


def test_metrics_that_are_none(tmp_path):
    start = Start(checkpoint=checkpoint(tmp_path / "start"))
    dev = data_of(ROWS[:2], "dev")
    with pytest.raises(InputError, match="metric is 'loss'; allowed are bleu, chrf"):
        train(start, data_of(ROWS), tmp_path / "out", recipe(), dev=dev, settings=settings(metric="loss"))


def test_a_run_that_ends_by_the_clock_lowers_its_rate_to_the_end(tmp_path):
    chosen = recipe(lr=1e-2, max_steps=None, max_minutes=0.05, warmup_steps=3)
    state = train(
        Start(checkpoint=checkpoint(tmp_path / "start")),
        data_of(ROWS),
        tmp_path / "run",
        chosen,
        settings=settings(log_every=1, save_minutes=60),
    )
    assert state.finished and 3 <= state.seconds < 10
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rates) == state.step > 10
    assert rates[3] > 0.9e-2 and rates[len(rates) // 2] < 0.9e-2 and rates[-1] < 0.1e-2


def test_the_end_of_a_run_is_told_from_its_last_steps():
    state = on_disk.State(step=100, seconds=60.0)
    horizon = loop.Horizon(10_000, 2.0, state)
    assert horizon.steps() == 200 and not horizon.is_reached()
    # One that compiles says nothing of the others.
    for seconds in (0.1, 30.0, 0.1):
        horizon.took(seconds)
    assert horizon.steps() == 700
    state.seconds = 120.0
    assert horizon.steps() == 100 and horizon.is_reached()
    assert loop.Horizon(10_000, None, state).steps() == 10_000
