"""A drafter of a large model: its layers, its words, its texts, and what is refused before the work begins."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import bild
from bild.data import Data, Example
from bild.errors import InputError, LoadError
from bild.models import read_short_list
from bild.models.one_encoder import EagerBorrower
from bild.models.parallel import parallel_head
from bild.training import Shape, draft
from bild.training.alignment import Teacher
from bild.training.drafting import making, prompts
from bild.training.drafting.prompts import opening_of, own_prompts
from bild.training.labels import Labels
from tests.networks import PAD, build, word_tokenizer
from tests.training.tiny import (
    SHAPES,
    checkpoint,
    kill_in,
    killing,
    recipe,
    same_weights,
    save_tokenizer,
    settings,
    weights,
)

LAYERS, LISTED = 4, 16
LEARNT = "decoder.block.0.layer.2.DenseReluDense.wi.weight"
ENCODED = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
TEMPLATE = (
    "{% for turn in messages %}{{ 'w2 ' + turn['content'] + ' w3 ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w4 ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A decoder-only network that repeats and ends its texts often enough."""
    folder = tmp_path_factory.mktemp("large")
    build("llama", layers=LAYERS, dtype=torch.float32).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def short(**changes):
    return settings(max_target_tokens=6, save_minutes=60, **changes)


def make(large: Path, out: Path, shape: Shape | None = None, **options):
    shape = Shape(layers="2", head_vocabulary=LISTED) if shape is None else shape
    options = {"texts": 40, "settings": short()} | options
    return draft(large, out, recipe(max_steps=3, distill=1.0, seed=options.pop("seed", 0)), shape, **options)


@pytest.fixture(scope="module")
def made(large, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make(large, out)
    return out


def lines(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_result_is_a_checkpoint_that_transformers_and_bild_load(large, made):
    theirs = AutoModelForCausalLM.from_pretrained(made)
    assert theirs.config.num_hidden_layers == 2 and theirs.get_output_embeddings().out_features == 40
    ids = read_short_list(made)
    assert ids is not None and len(ids) == LISTED and {0, 1} <= set(ids)
    pair = bild.BigLittleDecoder.from_pretrained(large=large, small=made, dtype="float32", device="cpu")
    texts, alone = (pair.generate([[5, 6], [9, 3, 4]], policy, max_new_tokens=8) for policy in ("exact", "large"))
    assert [each.token_ids for each in texts] == [each.token_ids for each in alone]
    small = pair.generate([[5, 6]], "small", max_new_tokens=8)[0]
    assert set(small.token_ids) <= set(ids)


@pytest.mark.parametrize("at_once", [1, 3])
def test_one_that_reads_states_begins_with_the_last_layer_and_learns_beside_the_large_model(
    large, tmp_path, caplog, at_once
):
    out = tmp_path / "out"
    make(large, out, Shape(reads="states", head_vocabulary=LISTED, at_once=at_once))
    facts = json.loads((out / "training.json").read_text())
    assert facts["beginning"]["layers"] == [LAYERS] and facts["held_out"]["mean_acceptance_length"] >= 1
    whole, learnt = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (large, out))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(whole[name], learnt[name])
    mlp = "mlp.up_proj.weight"
    assert not torch.equal(whole[f"model.layers.{LAYERS - 1}.{mlp}"], learnt[f"model.layers.0.{mlp}"])
    caplog.clear()
    pair = bild.BigLittleDecoder.from_pretrained(large=large, small=out, dtype="float32", device="cpu")
    # Of the layer that it does not know transformers says nothing.
    assert not any("joined" in record.getMessage() for record in caplog.records)
    joined = pair.small.network.joined.weight
    assert not torch.equal(joined[:, joined.shape[0] :], torch.eye(joined.shape[0]))
    parallel = parallel_head(pair.small.network)
    if at_once > 1:
        assert parallel.at_once == at_once and parallel.gated_out.weight.any() and parallel.attend_out.weight.any()
    else:
        assert parallel is None
    texts, alone = (pair.generate([[5, 6], [9, 3, 4]], policy, max_new_tokens=8) for policy in ("exact", "large"))
    assert [each.token_ids for each in texts] == [each.token_ids for each in alone]
    # The same call finds that it is done.
    make(large, out, Shape(reads="states", head_vocabulary=LISTED, at_once=at_once))


def test_its_list_holds_what_the_large_model_writes_most(made):
    counts: dict[int, int] = {}
    for label in lines(made / "labels.jsonl"):
        for id in label["token_ids"]:
            counts[id] = counts.get(id, 0) + 1
    listed = set(read_short_list(made) or [])
    dropped = [count for id, count in counts.items() if id not in listed]
    kept = [counts.get(id, 0) for id in listed if id > 1]
    assert not dropped or max(dropped) <= min(kept)


def test_provenance_says_what_it_was_made_of(made):
    facts = json.loads((made / "training.json").read_text())
    assert facts["beginning"]["of"] == LAYERS and len(facts["beginning"]["layers"]) == 2
    assert facts["beginning"]["short_list"]["tokens"] == LISTED
    held_out = facts["held_out"]
    assert held_out["prompts"] == 4 and held_out["policy"] == "exact" and held_out["mean_acceptance_length"] >= 1
    # More is drafted where nothing is doubted, and a smaller share of it kept.
    assert held_out["without_doubt"]["acceptance_rate"] < (held_out["acceptance_rate"] or 1)
    assert not (made / "start").exists()


def test_embeddings_and_head_begin_as_they_were_and_layers_are_those_that_are_named(large, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_, **__):
        raise Stopped

    monkeypatch.setattr("bild.training.drafting.making.learn", stop)
    with pytest.raises(Stopped):
        make(large, tmp_path / "out", Shape(layers="1,4", head_vocabulary=0))
    begun = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "start").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(large).state_dict()
    renumbered = {name.replace("layers.3.", "layers.1."): value for name, value in whole.items() if ".1." not in name}
    renumbered = {name: value for name, value in renumbered.items() if ".2." not in name}
    assert begun.keys() == renumbered.keys()
    assert all(torch.equal(begun[name], value) for name, value in renumbered.items())
    assert read_short_list(tmp_path / "out" / "start") is None


def test_prompts_are_its_own_different_ones_and_the_same_from_a_seed(large, tmp_path):
    decoder = bild.BigLittleDecoder.from_pretrained(large=large, drafter="ngram", dtype="float32", device="cpu")
    opening, found = opening_of(word_tokenizer(), None), {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        data = own_prompts(tmp_path / name, 30, opening, seed, lambda: decoder)
        found[name] = [example.source for example in data.examples]
    assert found["one"] == found["same"] != found["other"]
    assert len(set(found["one"])) == 30
    # What is there is not drawn again, and more is drawn where that run stopped.
    (file,) = (tmp_path / "one").iterdir()
    assert (
        own_prompts(tmp_path / "one", 30, opening, 0, None).examples
        == own_prompts(tmp_path / "same", 30, opening, 0, None).examples
    )
    file.write_bytes(file.read_bytes()[:-9])
    again = own_prompts(tmp_path / "one", 30, opening, 0, lambda: decoder)
    assert [example.source for example in again.examples] == found["one"]


def test_with_a_template_prompts_are_what_stands_in_a_users_turn():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    opening = opening_of(tokenizer, None)
    assert (opening.ids, opening.ends, opening.stops, opening.must_end) == ([2], (), ("w3",), True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["w3"]})
    assert opening_of(tokenizer, None).ends == (3,)
    assert opening_of(tokenizer, False).ids == [tokenizer.eos_token_id if tokenizer.bos_token_id is None else 0]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system') }}", "the chat template refuses a user's turn"),
        ("{{ messages[0].nothing.at_all }}", "the chat template refuses a user's turn"),
        ("w2 always the same", "does not show the user's text"),
        ("{{ messages[0]['content'] }}", "writes nothing before a user's turn"),
    ],
)
def test_a_template_that_fails_is_said_in_one_line(template, says):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=says):
        opening_of(tokenizer, None)


def test_given_prompts_are_answered_and_those_without_room_are_left_out(large, tmp_path, capsys):
    texts = [f"w{2 + at} w{3 + at} w7" for at in range(20)] + ["w5 " * 80]
    data = {"asked": Data("asked", [Example(str(at), text) for at, text in enumerate(texts)])}
    make(large, tmp_path / "out", data=data)
    assert not (tmp_path / "out" / "prompts.jsonl").exists()
    labelled = {label["source"] for label in lines(tmp_path / "out" / "labels.jsonl")}
    # Two are held out, the one that is too long among them.
    assert labelled == set(texts[:19])
    assert json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]["prompts"] == 1
    only = {"asked": Data("asked", [Example("1", "w5 " * 80)])}
    with pytest.raises(InputError, match="nothing to learn from: 0 of 1 examples; left out: 1 source longer than 64"):
        make(large, tmp_path / "none", data=only)


def test_sampled_answers_do_not_depend_on_what_they_are_written_beside(large, tmp_path, monkeypatch):
    monkeypatch.setattr("bild.training.labels.ROWS", 4)
    teacher = Teacher(str(large), short(), temperature=0.9, seed=3)
    assert teacher.describe()["temperature"] == 0.9 and teacher.describe()["seed"] == 3
    sources, found = [f"w{2 + at} w9" for at in range(10)], []
    for name, order in (("whole", [sources]), ("in two", [sources[3:4], sources])):
        labels = Labels(tmp_path / name, {})
        for some in order:
            teacher.label(labels, some)
        found.append(labels.by_source)
    assert found[0] == found[1] and len({label.token_ids for label in found[0].values()}) > 5


PLACES = [(prompts, "_append"), (Labels, "_write"), (os, "replace"), (making, "learn"), (making, "measure")]


def test_a_killed_run_goes_on(large, made, tmp_path, monkeypatch):
    for owner, name in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), 1))
            kill_in(lambda: make(large, tmp_path / "out"))
        assert (tmp_path / "out" / "model.safetensors").exists() == (name == "measure")
    make(large, tmp_path / "out")
    assert same_weights(made, tmp_path / "out")
    facts = [json.loads((folder / "training.json").read_text()) for folder in (made, tmp_path / "out")]
    assert facts[0]["held_out"] == facts[1]["held_out"] and facts[0]["beginning"] == facts[1]["beginning"]


def test_a_finished_run_is_left_alone_and_another_one_is_refused(large, made, capsys):
    before = (made / "training.json").read_bytes()
    make(large, made)
    assert "is finished" in capsys.readouterr().err and (made / "training.json").read_bytes() == before
    with pytest.raises(InputError, match=r"other settings: shape.layers is \"2\" there and \"3\" here"):
        make(large, made, Shape(layers="3", head_vocabulary=LISTED))


def test_a_full_disk_is_said_before_training_and_the_same_call_goes_on(large, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("bild.training.drafting.room.shutil.disk_usage", lambda _: usage)
        with pytest.raises(
            InputError, match=r"training needs about 0.0 GB .* make room and run the same command again"
        ):
            make(large, tmp_path / "out")
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(InputError, match=r"No space left on device.*goes on"):
            make(large, tmp_path / "out")
    make(large, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_cannot_be_made_is_refused_before_a_weight_is_read(large, tmp_path, monkeypatch):
    monkeypatch.setattr("bild.training.alignment.load_network", None)
    for shape, says in (
        (Shape(layers="5"), "layers is 5, and the large model has 4; allowed is 1 to 4"),
        (Shape(layers="0"), "layers is 0, and the large model has 4"),
        (Shape(layers="1,5"), "there is no layer 5; allowed are different ones of 1 to 4"),
        (Shape(layers="3,1"), "not in ascending order"),
        (Shape(layers="2", encoder_layers="1"), "has no encoder"),
        (Shape(layers="2", head_vocabulary=2), "head_vocabulary is 2; it holds the 2 special tokens"),
        (Shape(layers="2", head_vocabulary=41), "allowed is 3 to 40, or 0 for the whole head"),
    ):
        with pytest.raises(InputError, match=says):
            make(large, tmp_path / "out", shape)
    for values, says in (
        ({"layers": "all"}, "layers is 'all'; write how many"),
        ({"choose": "best"}, "allowed are auto, even, measured"),
        ({"layers": "1,2", "choose": "even"}, "give one of the two"),
        ({"head_vocabulary": -1}, "head_vocabulary is -1"),
        ({"at_once": 0, "reads": "states"}, "at_once is 0; allowed is 1 to 16"),
        ({"at_once": 4}, "at_once is 4, and a drafter that reads tokens writes one"),
    ):
        with pytest.raises(InputError, match=says):
            Shape(**values)


def test_layers_that_read_others_keys_are_not_dropped(tmp_path):
    config = Gemma3nTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=40,
        vocab_size_per_layer_input=40,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        laurel_rank=4,
        activation_sparsity_pattern=None,
        pad_token_id=PAD,
    )
    Gemma3nForCausalLM(config).save_pretrained(tmp_path / "large")
    save_tokenizer(tmp_path / "large")
    with pytest.raises(LoadError, match=r"2 of its layers read the keys and values of others.*--drafter ngram"):
        make(tmp_path / "large", tmp_path / "out")


@pytest.mark.parametrize(("encoder_layers", "has_own"), [("1", True), (None, False)])
def test_an_encoder_decoder_needs_prompts_and_keeps_its_encoder(encoder_layers, has_own, tmp_path):
    SHAPES["wide"] = "t5:d_model=32,d_kv=8,d_ff=64,num_layers=2,num_decoder_layers=4,num_heads=4"
    folder = checkpoint(tmp_path / "large", "wide")
    with pytest.raises(InputError, match="encoder-decoder, which reads texts that others wrote; give some with --data"):
        make(folder, tmp_path / "out")
    texts = [f"w{2 + at} w{3 + at} w7" for at in range(30)]
    data = {"asked": Data("asked", [Example(str(at), text) for at, text in enumerate(texts)])}
    shape = Shape(layers="3,4", encoder_layers=encoder_layers, head_vocabulary=LISTED)
    # Random weights write no end; a text that was cut is no text to learn.
    end_always(folder)
    draft(folder, tmp_path / "out", recipe(max_steps=2, distill=1.0), shape, data=data, settings=short())
    pair = bild.BigLittleDecoder.from_pretrained(large=folder, small=tmp_path / "out", dtype="float32", device="cpu")
    config = pair.small.config
    assert (config.num_layers, config.num_decoder_layers) == (1 if has_own else 2, 2)
    # What it drafts with learns, and the encoder only where it is its own.
    assert isinstance(pair.small, EagerBorrower) != has_own
    before, after = weights(Path(folder)), weights(tmp_path / "out")
    assert not torch.equal(before["decoder.block.2.layer.2.DenseReluDense.wi.weight"], after[LEARNT])
    assert torch.equal(before[ENCODED], after[ENCODED]) != has_own
    texts = [pair.generate("w5 w6 w9", policy, max_new_tokens=6)[0].token_ids for policy in ("exact", "large")]
    assert texts[0] == texts[1]


def end_always(folder: str) -> None:
    file = Path(folder) / "generation_config.json"
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | {"forced_eos_token_id": 1}))
