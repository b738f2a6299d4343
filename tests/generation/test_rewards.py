"""Who judges segments, from what a user gives to the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from bild import BigLittleDecoder, InputError, LoadError, Policy, custom_generate
from bild.generation.rewards import Delimited
from bild.models import Classifier
from tests.generation.tokenizers import bytewise
from tests.networks import VOCAB_SIZE, build, word_tokenizer

INPUTS = [[5, 6, 7, 5, 6, 7, 8, 5], [9, 4], [7, 7, 7, 3, 8, 7], [4, 5, 4]]
POLICY = "reward:delta=0.5:delimiter=w2:max_draft_tokens=4"


def pair(name: str = "llama", **options) -> BigLittleDecoder:
    return BigLittleDecoder(build(name), build(name, seed=1, layers=1), word_tokenizer(), **options)


def ids(results) -> list[list[int]]:
    return [result.token_ids for result in results]


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_between_the_small_model_and_the_large_one(name):
    decoder, options = pair(name), {"max_new_tokens": 14}
    alone = {side: ids(decoder.generate(INPUTS, side, **options)) for side in ("small", "large")}
    assert alone["small"] != alone["large"]
    mixed = []
    for size in (1, 4):
        for value, side in ((1.0, "small"), (0.0, "large"), (float("nan"), "large")):
            results = decoder.generate(INPUTS, POLICY, reward=lambda *_, v=value: v, batch_size=size, **options)
            assert ids(results) == alone[side]
        mixed.append(decoder.generate(INPUTS, POLICY, reward=longish, batch_size=size, **options))
    assert ids(mixed[0]) == ids(mixed[1]) and ids(mixed[0]) not in alone.values()
    assert {writer for result in mixed[0] for writer in result.writers} == {"small", "large"}


def longish(source: str, before: str, segment: str) -> float:
    """A reward of no meaning that keeps about half of all segments."""
    return float(sum(map(ord, before + segment)) % 2)


def test_a_function_is_shown_the_source_and_what_stands():
    for name, source in (("llama", "w5 w6 w7"), ("t5", "w5 w6 w7")):
        seen = []
        decoder = pair(name, reward=lambda *texts, seen=seen: seen.append(texts) or 1.0)
        (result,) = decoder.generate([[5, 6, 7]], POLICY, max_new_tokens=10)
        assert {texts[0] for texts in seen} == {source} and seen[0][1] == ""
        for before, after in pairwise(seen):
            assert after[1] == before[1] + before[2]
        assert seen[-1][1] + seen[-1][2] == result.text


def test_a_function_by_its_name_and_a_pair_on_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_reward.py").write_text(
        "def judge(source, before, segment):\n    return float(sum(map(ord, before + segment)) % 2)\nx = 3\n"
    )
    named, own = pair(reward="own_reward:judge"), pair(reward=longish)
    expected = ids(own.generate(INPUTS, POLICY, max_new_tokens=12))
    assert ids(named.generate(INPUTS, POLICY, max_new_tokens=12)) == expected
    stream = pair().stream(INPUTS[0], POLICY, reward="own_reward:judge", max_new_tokens=12)
    for _ in stream:
        pass
    assert stream.result.token_ids == expected[0]
    for wrong, says in (("own_reward:nothing", "cannot be imported"), ("own_reward:x", "is a int; give a function")):
        with pytest.raises(InputError, match=says):
            pair(reward=wrong)


def test_transformers_generate_takes_a_reward_and_a_middle_model():
    large, small = build("llama"), build("llama", seed=1, layers=1)
    ids_in = torch.tensor([INPUTS[0]])
    inputs = {"input_ids": ids_in, "attention_mask": torch.ones_like(ids_in), "max_new_tokens": 12, "do_sample": False}
    plain = large.generate(**inputs)
    for value, same in ((0.0, True), (1.0, False)):
        door = custom_generate(small, POLICY, reward=lambda *_, v=value: v, tokenizer=word_tokenizer())
        assert torch.equal(large.generate(**inputs, custom_generate=door), plain) == same
    middle = build("llama", seed=2)
    for options in (
        {"small": small, "middle": middle, "middle_window": 2},
        {"small": small, "middle": "exit:1"},
        {"small": small, "middle": "small", "drafter": "ngram:shortest=1"},
        {"middle": middle, "drafter": "ngram:shortest=1"},
    ):
        out = large.generate(
            **inputs, custom_generate=custom_generate(policy="exact", **options), return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, plain)
        if options["middle"] != "small":
            assert out.bild_results[0].stats.num_steps_by_model["middle"] > 0
    for options, says in (
        ({"small": small, "middle": 3}, "middle is a int"),
        ({"small": small, "middle": "small"}, "needs it too"),
        ({"small": small, "middle": middle, "middle_window": 0}, "middle_window is 0"),
    ):
        with pytest.raises(InputError, match=says):
            custom_generate(**options)


def sizes(kind: type, **options):
    return kind(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCAB_SIZE,
        max_position_embeddings=16, pad_token_id=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "llama", "number"])
def test_a_classifier_checkpoint_judges_source_and_text(kind, tmp_path):
    torch.manual_seed(3)
    if kind == "llama":
        network = LlamaForSequenceClassification(sizes(LlamaConfig, num_labels=2))
    else:
        network = BertForSequenceClassification(sizes(BertConfig, num_labels=1 if kind == "number" else 3))
    network.eval().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)

    def expected(label: int, *words: str) -> float:
        read = word_tokenizer()(*words, return_tensors="pt", truncation="longest_first", max_length=16)
        with torch.inference_mode():
            scores = network(**read).logits[0]
        return float(scores[0].sigmoid() if kind == "number" else scores.softmax(-1)[label])

    classifier = Classifier.load(tmp_path)
    pairs = [("w5 w6", "w7 w2"), ("", "w9"), ("w4 " * 20, "w3 " * 20)]
    last = network.config.num_labels - 1
    assert classifier.probabilities(pairs) == pytest.approx([expected(last, *filter(None, each)) for each in pairs])
    seen = []
    decoder = pair(reward=str(tmp_path))
    score = decoder.reward.classifier.probabilities
    decoder.reward.classifier.probabilities = lambda pairs: seen.append(pairs) or score(pairs)
    scores = [score for each in [[("w5 w6 w7", "w2")]] for score in decoder.reward.classifier.probabilities(each)]
    kept = decoder.generate([[5, 6, 7]], f"reward:delta={scores[0] - 1}:delimiter=w2", max_new_tokens=8)
    assert kept[0].token_ids == decoder.generate([[5, 6, 7]], "small", max_new_tokens=8)[0].token_ids
    assert seen[1][0][0] == "w5 w6 w7"
    if kind == "number":
        with pytest.raises(InputError, match="label is 'LABEL_0'; it has one number"):
            Classifier.load(tmp_path, label="LABEL_0")
    else:
        assert pair(reward=f"{tmp_path},label=LABEL_0").reward.classifier.column == 0
        with pytest.raises(InputError, match="label is 'good'; allowed are LABEL_0, LABEL_1"):
            pair(reward=f"{tmp_path},label=good")


def test_what_is_no_reward_is_one_line(tmp_path):
    build("llama").save_pretrained(tmp_path / "lm")
    word_tokenizer().save_pretrained(tmp_path / "lm")
    for wrong, kind, says in (
        (str(tmp_path / "lm"), LoadError, "is no classifier: its weights lack score.weight"),
        (str(tmp_path / "gone"), LoadError, "no such folder"),
        (3, InputError, "reward is a int; give a classifier's folder"),
        ("no_such_module:judge", InputError, "cannot be imported .ModuleNotFoundError"),
    ):
        with pytest.raises(kind, match=says) as raised:
            pair(reward=wrong)
        assert "\n" not in str(raised.value)
    decoder = pair()
    for options, says in (
        ({"policy": POLICY}, "judges segments by a reward, and there is none"),
        ({"policy": "exact", "reward": longish}, "has nothing to judge under this policy"),
        ({"policy": POLICY, "reward": lambda *_: 1 / 0}, "the reward failed with ZeroDivisionError"),
        ({"policy": POLICY, "reward": lambda *_: "good"}, "the reward gave str; allowed is a number"),
        ({"policy": POLICY, "reward": lambda: 1.0}, "the reward failed with TypeError"),
        ({"policy": POLICY, "reward": longish, "lossless": True}, "does not give the large model's own text"),
    ):
        with pytest.raises(InputError, match=says):
            decoder.generate([[5, 6, 7]], max_new_tokens=8, **options)
    bare = BigLittleDecoder(build("llama"), build("llama", seed=1))
    with pytest.raises(InputError, match="judges texts, and the pair has no tokenizer"):
        bare.generate([[5]], POLICY, reward=longish)


def test_a_segment_ends_with_its_delimiter_behind_something_else():
    tokenizer = bytewise()
    ends = Delimited("\n\n", tokenizer)
    for text, whole in (("a\n\n", True), ("a\n", False), ("\n\n", False), ("\n\n\n\nb", False), ("\n\nb\n\nc", True)):
        assert ends(tokenizer(text).input_ids) == whole


def test_a_policy_in_a_pair_may_be_about_segments():
    own = pair(policy=Policy.reward(delta=0.5, delimiter="w2", max_draft_tokens=4), reward=longish)
    assert ids(own.generate(INPUTS, max_new_tokens=9)) == ids(own.generate(INPUTS, POLICY, max_new_tokens=9))
