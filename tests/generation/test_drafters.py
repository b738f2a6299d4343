"""Who drafts, from the name a user gives to the text."""

from __future__ import annotations

import json

import pytest

from bild import BigLittleDecoder, InputError, LoadError, Pair, Policy, custom_generate
from bild.decoding import NGram, Ngrams, parse_drafter
from bild.generation.pair import bundled_pair, choose_pair
from tests.networks import BATCHING, VOCAB_SIZE, build

DRAFTERS = ["small", "ngram:shortest=1", "first:ngram:shortest=1,small", "bandit:rule=exp3:ngram:shortest=1,small"]


@pytest.mark.parametrize("text", [*DRAFTERS, "ngram:window=5:look_in=text:which=first", "first:small,ngram"])
def test_a_drafter_is_read_as_it_is_written(text):
    assert str(parse_drafter(text)) == text and parse_drafter(str(parse_drafter(text))) == parse_drafter(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no name"),
        ("n-gram", "drafter 'n-gram' is unknown; write small, ngram"),
        ("first", "names no drafter"),
        ("first:ngram,,small", "names no drafter, or an empty one"),
        ("first:small,small", "names small twice"),
        ("first:bandit:small", "only small, ngram and backoff can stand there"),
        ("backoff", "needs the counts; write backoff:file=FILE"),
        ("backoff:file=/no/such/file", "cannot read /no/such/file: No such file"),
        ("bandit:step_cost=x:small", "step_cost is 'x'; allowed is a number"),
        ("bandit:read_cost=-1:small", "read_cost is -1.0; allowed is 0 or more"),
        ("ngram:window=x", "window is 'x'; allowed is a whole number"),
        ("ngram:window=0", "window is 0"),
        ("ngram:size=3", "has no option 'size'; allowed are window"),
        ("small:window=3", "has no option 'window'; it has none"),
        ("bandit:rule=best:small", "rule is 'best'; allowed are ucb"),
        ("ngram:window", "is not key=value"),
    ],
)
def test_what_is_no_drafter_is_one_line(text, says):
    for read in (parse_drafter, lambda text: BigLittleDecoder(build("t5"), drafter=text)):
        with pytest.raises(ValueError, match=says) as raised:
            read(text)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", BATCHING)
def test_the_exact_rule_is_the_large_models_text_with_any_drafter(name, tmp_path):
    large = build(name)
    pair = BigLittleDecoder(large, build(name, seed=1, layers=1))
    alone = BigLittleDecoder(large, drafter="ngram:shortest=1")
    inputs = [[5, 6, 7, 5, 6, 7, 8, 5], [9, 4], [7, 7, 7, 3, 8, 7], *([4 + at, 5, 4 + at] for at in range(5))]
    options = {"max_new_tokens": 24, "policy": Policy.exact(fallback_threshold=0.1)}
    expected = [result.token_ids for result in pair.generate(inputs, "large", max_new_tokens=24)]
    # Counted in what the large model writes, half of it, so that some drafts stay.
    Ngrams(VOCAB_SIZE).add(expected[::2]).save(tmp_path / "counts")
    counted = f"backoff:file={tmp_path / 'counts'}"
    written = set()
    for batch_size in (1, 8):
        for decoder, drafter in [(alone, None), *((pair, text) for text in [*DRAFTERS, counted])]:
            some = inputs[: 3 if batch_size == 1 else None]
            results = decoder.generate(some, drafter=drafter, batch_size=batch_size, **options)
            assert [result.token_ids for result in results] == expected[: len(some)], (drafter, batch_size)
            written |= {writer for result in results for writer in result.writers}
    assert written == {"large", "small", "ngram", "backoff"}


def test_an_early_exit_falls_behind_and_catches_up():
    """Both sides share one cache; what the n-gram wrote, the layers below read for the layers above."""
    pair = BigLittleDecoder(build("llama"), "exit:1")
    inputs = [[5, 6, 7, 5, 6, 7, 8, 5], [7, 7, 7, 3, 8, 7], [4, 5, 4]]
    expected = [result.token_ids for result in pair.generate(inputs, "large", max_new_tokens=24)]
    for drafter in DRAFTERS:
        for batch_size in (1, 2):
            policy = Policy.exact(fallback_threshold=0.1)
            results = pair.generate(inputs, policy, drafter=drafter, batch_size=batch_size, max_new_tokens=24)
            assert [result.token_ids for result in results] == expected, drafter


def test_the_bundled_pair_copies_a_name_from_its_source(bundled, sentences):
    """With a shared vocabulary the source is looked in; the text is still the large model's."""
    texts = ["Herr Wolfgang Schmidthuber aus Unterschleißheim lacht.", *sentences[:6]]
    expected = [result.text for result in bundled.generate(texts, "large")]
    for drafter in ("ngram:shortest=1", "first:ngram,small"):
        results = bundled.generate(texts, "exact", drafter=drafter, batch_size=3)
        assert [result.text for result in results] == expected
    results = bundled.generate(texts, "exact", drafter="ngram:shortest=1:look_in=source")
    assert results[0].stats.num_tokens_by_writer.get("ngram", 0) > 0


def test_a_large_model_alone_needs_a_drafter_that_needs_no_other():
    with pytest.raises(InputError, match="drafter 'small' needs a small model and there is none"):
        BigLittleDecoder(build("t5"))
    decoder = BigLittleDecoder(build("t5"), drafter="ngram")
    assert decoder.models == (decoder.large,)
    for options in ({"drafter": "first:ngram,small"}, {"policy": "small"}, {"drafter": lambda kit: kit.small()}):
        with pytest.raises(InputError, match="small model"):
            decoder.generate([[5, 6]], **options)
    with pytest.raises(InputError, match="there is no small model"):
        _ = decoder.small
    with pytest.raises(InputError, match="drafter is a int"):
        decoder.generate([[5, 6]], drafter=3)


def test_a_function_makes_a_drafter_and_streams_too():
    decoder = BigLittleDecoder(build("llama"), drafter=lambda kit: NGram(shortest=1, vocab_size=kit.vocab_size))
    expected = decoder.generate([[5, 6, 5]], "large", max_new_tokens=20)[0].token_ids
    assert decoder.generate([[5, 6, 5]], "exact", max_new_tokens=20)[0].token_ids == expected
    stream = decoder.stream([5, 6, 5], "exact", drafter="ngram", max_new_tokens=20)
    for _ in stream:
        pass
    assert stream.result.token_ids == expected
    with pytest.raises(InputError, match="the drafter is a function"):
        decoder.save_pretrained("nowhere")


def test_a_pair_on_disk_says_who_drafts(tmp_path):
    (tmp_path / "large").mkdir()
    Pair(str(tmp_path / "large"), None, drafter="ngram:window=8").save(tmp_path)
    assert json.loads((tmp_path / "bild.json").read_text())["small"] is None
    assert Pair.load(tmp_path) == Pair(str(tmp_path / "large"), None, drafter="ngram:window=8")
    with pytest.raises(InputError, match="needs one"):
        _ = Pair.load(tmp_path).cheap
    for wrong in ({"large": "a"}, {"large": "a", "drafter": "first:ngram,small"}, {"large": "a", "drafter": 3}):
        (tmp_path / "bild.json").write_text(json.dumps(wrong))
        with pytest.raises(LoadError, match="does not describe a pair"):
            Pair.load(tmp_path)


def test_large_may_be_named_alone_only_with_such_a_drafter():
    assert choose_pair(None, "large", None, "ngram") == Pair("large", None, drafter="ngram")
    for drafter in (None, "small", "first:ngram,small"):
        with pytest.raises(InputError, match="small is missing"):
            choose_pair(None, "large", None, drafter)
    assert choose_pair(bundled_pair(), None, None, "ngram").small is not None


def test_a_decoder_without_a_small_model_is_saved_and_loaded(tmp_path):
    large = build("llama")
    BigLittleDecoder(large, drafter="ngram:shortest=1").save_pretrained(tmp_path)
    loaded = BigLittleDecoder.from_pretrained(tmp_path, dtype="float64", runtime="eager")
    assert str(loaded.drafter) == "ngram:shortest=1" and len(loaded.models) == 1
    by_name = BigLittleDecoder.from_pretrained(
        large=tmp_path / "large", drafter="ngram", dtype="float64", runtime="eager"
    )
    texts = [d.generate([[5, 6, 5]], "exact", max_new_tokens=12)[0].token_ids for d in (loaded, by_name)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_transformers_generate_takes_a_drafter_and_no_small_model(name):
    import torch

    large = build(name)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 5, 6]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    plain = large.generate(**inputs, max_new_tokens=20, do_sample=False)
    for door in (
        custom_generate(policy="exact", drafter="ngram:shortest=1"),
        custom_generate(build(name, seed=1), "exact", drafter="first:ngram:shortest=1,small"),
        custom_generate(build(name, seed=1), "exact"),
    ):
        assert torch.equal(large.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=door), plain)
    with pytest.raises(InputError, match="small is missing"):
        custom_generate()
    with pytest.raises(InputError, match="needs a small model"):
        custom_generate(drafter="first:ngram,small")
