"""The small model learns the large model's texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bild
from bild.data import Data, Example
from bild.errors import InputError, LoadError, VocabularyError
from bild.training import align, labels
from bild.training.alignment import Teacher
from bild.training.labels import Labels
from bild.training.losses import Objective
from tests.training.tiny import checkpoint, copies, data_of, kill_in, killing, recipe, same_weights, settings, weights

SOURCES = [row["source"] for row in copies(150, vocab_size=40)]
UNIQUE = list(dict.fromkeys(SOURCES))


def inputs(sources=SOURCES) -> dict[str, Data]:
    """Texts without targets."""
    return {"texts": Data("texts", [Example(str(at), source) for at, source in enumerate(sources, 1)])}


def pair_of(folder: Path, kind: str) -> dict[str, str]:
    return {name: checkpoint(folder / name, kind, seed) for seed, name in enumerate(("large", "small"))}


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_labels_are_the_large_models_texts_and_the_small_model_learns_them(tmp_path, kind):
    names = pair_of(tmp_path, kind)
    asked = settings(max_target_tokens=6, save_minutes=60)
    if kind == "t5":
        end_early(names["large"])
    align(inputs(), tmp_path / "out", recipe(lr=1e-2, max_steps=80), **names, settings=asked)
    made = read(tmp_path / "out")
    assert sorted(label["source"] for label in made) == sorted(UNIQUE)
    before, after = (
        bild.BigLittleDecoder.from_pretrained(large=names["large"], small=str(small), dtype="float32", device="cpu")
        for small in (names["small"], tmp_path / "out")
    )
    sample = {label["source"]: label for label in made[::7]}
    for result, label in zip(before.generate(list(sample), "large", max_new_tokens=6), sample.values(), strict=True):
        assert (result.token_ids, result.text, result.finish_reason) == (
            label["token_ids"],
            label["target"],
            label["finish_reason"],
        )
    assert len({tuple(label["token_ids"]) for label in made}) > 5
    # An encoder-decoder does not learn from texts that were cut.
    learnt = {key: label for key, label in sample.items() if kind == "gpt2" or label["finish_reason"] == "eos"}
    agreed = [agreement(pair, learnt) for pair in (before, after)]
    assert 1 - agreed[1] < (1 - agreed[0]) / 2


def test_distilled_the_small_model_comes_near_the_large_models_distributions(tmp_path):
    names = pair_of(tmp_path, "gpt2")
    asked = settings(max_target_tokens=6, save_minutes=60)
    distances = {}
    for share in (0.0, 1.0):
        out = tmp_path / f"out-{share}"
        align(inputs(), out, recipe(lr=1e-2, max_steps=80, distill=share), **names, settings=asked)
        pair = bild.BigLittleDecoder.from_pretrained(
            large=names["large"], small=str(out), dtype="float32", device="cpu"
        )
        policy = bild.Policy.bild(fallback_threshold=0.0, rollback_threshold=float("inf"), metric="kl", verify_end=True)
        results = pair.generate(UNIQUE[:20], policy, max_new_tokens=6)
        found = [distance for result in results for commit in result.rounds for distance in commit.distances]
        distances[share] = sum(found) / len(found)
    assert distances[1.0] < distances[0.0] / 2


def end_early(name: str) -> None:
    """A random encoder-decoder never ends its texts: let its end token win now and then."""
    from safetensors.torch import save_file

    tensors = weights(Path(name))
    tensors["shared.weight"][1] = 3 * tensors["shared.weight"][2:8].sum(0) / 6**0.5
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, Path(name) / "model.safetensors", {"format": "pt"}
    )


def agreement(pair, sample) -> float:
    """Share of the labels' tokens that the small model writes at their place."""
    texts = pair.generate(list(sample), "small", max_new_tokens=6)
    pairs = [
        (one, other)
        for result, label in zip(texts, sample.values(), strict=True)
        for one, other in zip(result.token_ids, label["token_ids"], strict=False)
    ]
    return sum(one == other for one, other in pairs) / sum(len(label["token_ids"]) for label in sample.values())


def test_killed_while_labelling_and_while_learning(tmp_path, monkeypatch):
    names = pair_of(tmp_path, "gpt2")
    monkeypatch.setattr(labels, "ROWS", 16)

    def run(out: Path) -> None:
        align(inputs(), out, recipe(dropout=0.1), **names, settings=settings(max_target_tokens=5))

    run(tmp_path / "whole")
    points = [
        (Labels, "_write", 1, False),
        (Labels, "_write", 3, True),
        (bild.BigLittleDecoder, "generate", 2, False),
        (Objective, "forward", 1, False),
        (Objective, "forward", 4, False),
    ]
    counts = []
    for place, name, call, after in points:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killing(getattr(place, name), call, after=after))
            kill_in(lambda: run(tmp_path / "killed"))
        file = tmp_path / "killed" / "labels.jsonl"
        counts.append(len(file.read_bytes().splitlines()) if file.exists() else 0)
        if counts[-1] == 38:
            # As if the kill had come in the middle of a line.
            file.write_bytes(file.read_bytes()[:-7])
    assert counts == [0, 38, 38, len(UNIQUE), len(UNIQUE)]
    run(tmp_path / "killed")
    whole, killed = read(tmp_path / "whole"), read(tmp_path / "killed")
    assert len(killed) == len(UNIQUE) == len({label["source"] for label in killed})
    assert {label["source"]: label for label in killed} == {label["source"]: label for label in whole}
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_labels_outlive_a_change_of_recipe_but_not_of_the_large_model(tmp_path, monkeypatch):
    names = pair_of(tmp_path, "gpt2")
    out, asked = tmp_path / "out", {"max_target_tokens": 4}
    align(inputs(), out, recipe(max_steps=1), **names, settings=settings(**asked))
    made = read(out)
    with pytest.raises(InputError, match=r"recipe\.max_steps is 1 there and 2 here"):
        align(inputs(), out, recipe(max_steps=2), **names, settings=settings(**asked))
    with monkeypatch.context() as patch:
        patch.setattr(bild.BigLittleDecoder, "generate", None)
        align(inputs(), out, recipe(max_steps=2), **names, settings=settings(**asked, fresh=True))
    assert read(out) == made
    other = names | {"large": checkpoint(tmp_path / "other", "gpt2", seed=5)}
    with pytest.raises(InputError, match="holds a run with other settings: large is"):
        align(inputs(), out, recipe(max_steps=2), **other, settings=settings(**asked))
    align(inputs(), out, recipe(max_steps=2), **other, settings=settings(**asked, fresh=True))
    assert {label["source"] for label in read(out)} == set(UNIQUE)
    assert read(out) != made


def test_counts_what_is_not_learnt(tmp_path, capsys):
    names = pair_of(tmp_path, "t5")
    end_early(names["large"])
    long = " ".join(["w5"] * 9)
    asked = settings(max_source_tokens=8, max_target_tokens=6)
    align(inputs([*SOURCES, long, SOURCES[0]]), tmp_path / "out", recipe(max_steps=1), **names, settings=asked)
    endless = sum(label["finish_reason"] == "length" for label in read(tmp_path / "out"))
    facts = json.loads((tmp_path / "out" / "training.json").read_text())["examples"]
    assert facts["left_out"] == {
        "duplicate": len(SOURCES) + 1 - len(UNIQUE),
        "source longer than 8 tokens": 1,
        "label without an end": endless,
    }
    assert 0 < endless < len(UNIQUE) and facts["used"] == len(UNIQUE) - endless
    assert f"labels: {len(UNIQUE)} in {tmp_path / 'out' / 'labels.jsonl'}" in capsys.readouterr().err


def test_a_large_model_that_ends_no_text_is_named_and_not_the_data(tmp_path):
    with pytest.raises(InputError, match=r"label without an end .*; raise --max-target-tokens, or take a large model"):
        align(inputs(), tmp_path / "out", recipe(), **pair_of(tmp_path, "t5"), settings=settings(max_target_tokens=2))


def test_begins_where_it_is_told(tmp_path):
    names = pair_of(tmp_path, "gpt2")
    begin = checkpoint(tmp_path / "begin", "gpt2", seed=7)
    for name, begins in (("own", None), ("other", begin)):
        asked = settings(max_target_tokens=4)
        align(inputs(), tmp_path / name, recipe(max_steps=1, lr=1e-9), **names, begin=begins, settings=asked)
        nearest = begin if begins else names["small"]
        moved = weights(tmp_path / name)
        assert all((moved[key] - weight).abs().max() < 1e-4 for key, weight in weights(Path(nearest)).items())


def test_pairs_that_cannot_teach(tmp_path):
    names = pair_of(tmp_path, "gpt2")
    out, chosen, asked = tmp_path / "out", recipe(), settings()
    with pytest.raises(InputError, match="the small model is exit:1, a part of the large one; name one"):
        align(inputs(), out, chosen, large=names["large"], small="exit:1", settings=asked)
    t5 = checkpoint(tmp_path / "t5", "t5")
    with pytest.raises(LoadError, match="one of the models is encoder-decoder and the other decoder-only"):
        align(inputs(), out, chosen, large=names["large"], small=t5, settings=asked)
    tokenizer = bild.models.load_tokenizer(names["small"])
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(names["small"])
    with pytest.raises(VocabularyError, match="exists in one only"):
        align(inputs(), out, chosen, **names, settings=asked)
    assert not out.exists()


def test_many_inputs_are_labelled_on_the_compiled_runtime(tmp_path, monkeypatch):
    names, runtimes = pair_of(tmp_path, "gpt2"), []

    class Loaded(Exception):
        pass

    def decoder(*networks, runtime):
        runtimes.append(runtime)
        raise Loaded

    monkeypatch.setattr("bild.training.alignment.BigLittleDecoder", decoder)
    for count in (499, 500):
        made = Labels(tmp_path / str(count), {})
        with pytest.raises(Loaded):
            Teacher(names["large"], settings()).label(made, [f"w{number}" for number in range(count)])
    assert runtimes == ["eager", "static"]


def test_targets_of_the_data_are_not_looked_at(tmp_path):
    names = pair_of(tmp_path, "gpt2")
    asked = settings(max_target_tokens=4)
    align(inputs(), tmp_path / "one", recipe(max_steps=2), **names, settings=asked)
    with_targets = data_of([{"source": source, "target": "w9"} for source in SOURCES], "texts")
    align(with_targets, tmp_path / "two", recipe(max_steps=2), **names, settings=asked)
    assert same_weights(tmp_path / "one", tmp_path / "two")
