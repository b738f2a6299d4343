"""Pairs on disk."""

from __future__ import annotations

import json

import pytest

from bild import InputError, LoadError, Pair, Policy
from bild.generation import bundled_pair


def test_names_both_checkpoints_and_the_policy(tmp_path):
    for side in ("large", "small"):
        (tmp_path / side).mkdir()
    policy = Policy.exact(fallback_threshold=0.1)
    file = Pair(str(tmp_path / "large"), "someone/small-model", policy, {"bleu": 33.1}).save(tmp_path)
    assert json.loads(file.read_text())["large"] == "large"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Pair.load(moved) == Pair(str(moved / "large"), "someone/small-model", policy, {"bleu": 33.1})


def test_a_folder_of_two_checkpoints_is_a_pair(tmp_path):
    for side in ("large", "small"):
        (tmp_path / side).mkdir()
    assert Pair.load(tmp_path) == Pair(str(tmp_path / "large"), str(tmp_path / "small"))


@pytest.mark.parametrize(
    "content", ["not json", "[]", "{}", '{"large": "a", "small": "b", "policy": {"alone": "medium"}}']
)
def test_what_is_no_pair_is_refused(tmp_path, content):
    (tmp_path / "bild.json").write_text(content)
    with pytest.raises(LoadError, match="does not describe a pair"):
        Pair.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", r"the file is \[1\]; it must be an object"),
        ('{"large": "a", "small": "b", "policy": "exact"}', "policy is 'exact'; it must be an object"),
        ('{"large": "a", "small": "b", "policy": null}', "policy is None; it must be an object"),
        ('{"large": "a", "small": "b", "evidence": "x"}', "evidence is 'x'; it must be an object"),
        ('{"large": "a"}', "small is None; it must be the folder, file or hub name of the small model"),
        ('{"large": "a", "small": null}', "small is None; it must be the folder"),
        ('{"large": "", "small": "b"}', "large is ''; it must be the folder"),
    ],
)
def test_what_a_key_must_hold_is_said(tmp_path, content, says):
    (tmp_path / "bild.json").write_text(content)
    with pytest.raises(LoadError, match=says):
        Pair.load(tmp_path)


def test_a_misspelt_key_is_named(tmp_path):
    (tmp_path / "bild.json").write_text('{"large": "a", "small": "b", "drafer": "ngram"}')
    with pytest.raises(LoadError, match="unknown key 'drafer'; allowed are large, small, middle, policy, drafter"):
        Pair.load(tmp_path)


def test_missing_and_empty_places_are_refused(tmp_path):
    with pytest.raises(LoadError, match="no such pair"):
        Pair.load(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="holds neither"):
        Pair.load(tmp_path)


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Pair("a", "b").save(tmp_path / "file" / "pair")


def test_the_bundled_pair_is_there():
    assert {path.name for path in bundled_pair().iterdir()} >= {"large", "small"}
