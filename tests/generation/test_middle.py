"""A model in between, from the name a user gives to the text."""

from __future__ import annotations

import json

import pytest

from bild import BigLittleDecoder, InputError, LoadError, Pair, Policy, VocabularyError
from bild.decoding import ExactMatch, WithinDistance
from bild.generation.pair import bundled_pair, choose_pair
from tests.networks import BATCHING, build, perturbed

INPUTS = [[5, 6, 7, 5, 6, 7, 8, 5], [9, 4], [7, 7, 7, 3, 8, 7], *([4 + at, 5, 4 + at] for at in range(5))]
EXACT = Policy.exact(fallback_threshold=0.1, max_draft_tokens=7)


@pytest.mark.parametrize("name", BATCHING)
def test_exact_cascades_write_the_large_models_text(name):
    large = build(name)
    between, small = perturbed(large, 0.15), build(name, seed=1, layers=1)
    pairs = {
        "network": BigLittleDecoder(large, small, middle=between, middle_window=3),
        "chain": BigLittleDecoder(large, between, middle="small", drafter="ngram:shortest=1"),
        "no small": BigLittleDecoder(large, middle=between, drafter="ngram:shortest=1"),
    }
    if name not in ("bart", "marian"):
        pairs["exit"] = BigLittleDecoder(large, small, middle="exit:1")
        pairs["exit below"] = BigLittleDecoder(large, "exit:1", middle=between)
    expected = [result.token_ids for result in pairs["network"].generate(INPUTS, "large", max_new_tokens=14)]
    for kind, pair in pairs.items():
        writers: set[str] = set()
        for batch_size in (1, 8):
            some = INPUTS[: 3 if batch_size == 1 else None]
            results = pair.generate(some, EXACT, batch_size=batch_size, max_new_tokens=14)
            assert [result.token_ids for result in results] == expected[: len(some)], (kind, batch_size)
            writers |= {writer for result in results for writer in result.writers}
        if kind in ("network", "no small"):
            assert "middle" in writers and results[0].stats.num_steps_by_model["middle"] > 0
        elif kind == "chain":
            assert {"large", "small"} <= writers <= {"large", "small", "ngram"}


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_sampled_rows_do_not_depend_on_their_batch(name):
    large = build(name)
    pair = BigLittleDecoder(large, build(name, seed=1, layers=1), middle=perturbed(large, 0.2))
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 12}
    for policy in ("speculative_sampling:window=5", "bild:metric=js", "exact"):
        texts = [
            [result.token_ids for result in pair.generate(INPUTS, policy, batch_size=size, **options)]
            for size in (1, 8)
        ]
        assert texts[0] == texts[1]
    alone = [result.token_ids for result in pair.generate(INPUTS, "large", **options)]
    assert alone == texts[0]


def test_a_stream_and_a_model_alone_know_it_too():
    large = build("llama")
    pair = BigLittleDecoder(large, build("llama", seed=1), middle=perturbed(large, 0.2))
    stream = pair.stream([5, 6, 5], "exact", max_new_tokens=16)
    for _ in stream:
        pass
    assert stream.result.token_ids == pair.generate([[5, 6, 5]], "large", max_new_tokens=16)[0].token_ids
    assert pair.models == (pair.large, pair.small) and pair.middle not in pair.models
    assert set(pair.generate([[5, 6, 5]], "small", max_new_tokens=5)[0].writers) == {"small"}


def test_a_qualifier_judges_below_and_needs_a_middle():
    large = build("llama")
    small, between = build("llama", seed=1), build("llama", seed=2)
    pair = BigLittleDecoder(large, small, middle=between)
    options = {"acceptance": WithinDistance(float("inf")), "max_draft_tokens": 50}
    texts = {
        rule: pair.generate([[5, 6, 5]], Policy(qualifier=rule, **options), max_new_tokens=12)[0].token_ids
        for rule in (ExactMatch(), WithinDistance(float("inf")))
    }
    alone = BigLittleDecoder(between, small).generate([[5, 6, 5]], "large", max_new_tokens=12)[0].token_ids
    assert texts[ExactMatch()] == alone and texts[WithinDistance(float("inf"))] != alone
    with pytest.raises(InputError, match="says what a middle model lets pass, and there is none"):
        BigLittleDecoder(large, small).generate([[5]], Policy(qualifier=ExactMatch(), **options))


def test_what_does_not_go_together_is_one_line():
    large, small = build("llama"), build("llama", seed=1)
    for error, says, make in [
        (
            InputError,
            "middle is the small model, and drafter 'small' needs it too",
            {"small": small, "middle": "small"},
        ),
        (InputError, "middle is the small model, and there is none", {"middle": "small", "drafter": "ngram"}),
        (InputError, "middle_window is 0; allowed is 1 or more", {"small": small, "middle": small, "middle_window": 0}),
        (InputError, "one of them can be an early exit", {"small": "exit:1", "middle": "exit:1"}),
        (InputError, "give a network, or exit:N", {"small": small, "middle": "medium"}),
        (
            LoadError,
            "the middle model has .* parameters and the large",
            {"small": small, "middle": build("llama", layers=3)},
        ),
        (
            VocabularyError,
            "rows and there are not two tokenizers",
            {"small": small, "middle": build("llama", vocab_size=41)},
        ),
        (LoadError, "encoder-decoder", {"small": small, "middle": build("t5")}),
    ]:
        with pytest.raises(error, match=says) as raised:
            BigLittleDecoder(large, **make)
        assert "\n" not in str(raised.value)
    pair = BigLittleDecoder(large, small, middle="small", drafter="ngram")
    with pytest.raises(InputError, match="drafter 'first:ngram,small' needs it too"):
        pair.generate([[5]], "exact", drafter="first:ngram,small")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("exit:4", ("exit:4", 4)), ({"model": "m", "window": 6}, ("m", 6)), ({"model": "m"}, ("m", 4)), (None, (None, 4))],
)
def test_a_pair_file_names_it(tmp_path, content, expected):
    (tmp_path / "bild.json").write_text(json.dumps({"large": "a", "small": "b", "middle": content}))
    pair = Pair.load(tmp_path)
    assert (pair.middle, pair.middle_window) == expected
    if pair.middle is not None:
        assert Pair.load(pair.save(tmp_path / "again.json")) == pair


@pytest.mark.parametrize("content", [{"window": 6}, {"model": "m", "size": 6}, {"model": "m", "window": 0}, 7, "small"])
def test_what_is_no_middle_is_refused(tmp_path, content):
    (tmp_path / "bild.json").write_text(json.dumps({"large": "a", "small": "b", "middle": content}))
    with pytest.raises(LoadError, match="does not describe a pair"):
        Pair.load(tmp_path)


def test_names_given_one_by_one():
    chosen = choose_pair(None, "large", "small", None, "between", 7)
    assert (chosen.middle, chosen.middle_window) == ("between", 7)
    over = choose_pair(bundled_pair(), None, None, "ngram", "small")
    assert (over.middle, over.middle_window, over.drafter) == ("small", 4, "ngram")
    with pytest.raises(InputError, match="middle_window is 3, and there is no middle model"):
        choose_pair(bundled_pair(), None, None, None, None, 3)


def test_is_saved_and_loaded(tmp_path):
    large, small = build("llama"), build("llama", seed=1, layers=1)
    for at, options in enumerate(
        [
            {"middle": perturbed(large, 0.2), "middle_window": 2},
            {"middle": "exit:1"},
            {"middle": "small", "drafter": "ngram"},
        ]
    ):
        saved = BigLittleDecoder(large, small, **options)
        saved.save_pretrained(tmp_path / str(at))
        loaded = BigLittleDecoder.from_pretrained(tmp_path / str(at), dtype="float64", runtime="eager")
        assert loaded._middle.window == saved._middle.window and loaded._middle.part == saved._middle.part
        texts = [d.generate(INPUTS[:3], EXACT, max_new_tokens=12) for d in (saved, loaded)]
        assert [r.rounds for r in texts[0]] == [r.rounds for r in texts[1]]
    named = BigLittleDecoder.from_pretrained(
        tmp_path / "0", middle=tmp_path / "0" / "middle", middle_window=5, dtype="float64", runtime="eager"
    )
    assert named._middle.window == 5


def test_the_bundled_pair_under_its_own_exit_and_as_a_chain(bundled, sentences):
    """On real models, to the letter."""
    large, small = bundled.large.network, bundled.small.network
    expected = [result.text for result in bundled.generate(sentences[:4], "large")]
    for options in ({"middle": "exit:4"}, {"middle": "small", "drafter": "ngram:shortest=1"}):
        pair = BigLittleDecoder(large, small, bundled.tokenizer, small_tokenizer=bundled.tokenizer, **options)
        results = pair.generate(sentences[:4], "exact", batch_size=2)
        assert [result.text for result in results] == expected
