"""CALM as a method of bild evaluate."""

from __future__ import annotations

import json

import pytest

from bild import BigLittleDecoder
from bild.errors import InputError
from bild.evaluation import Example, MethodSpec, Setup, evaluate, load_methods, parse_methods
from bild.evaluation.calm import rule_of
from bild.evaluation.cells import speed_rows
from bild.models import ExitRule
from tests.networks import shared

SETUP = Setup(dtype="float32", device="cpu", max_new_tokens=8)


def rule(text: str, max_new_tokens: int = 77) -> ExitRule:
    return rule_of(MethodSpec.parse(text), max_new_tokens)


def test_options_are_those_of_the_rule():
    assert rule("calm") == ExitRule(max_tokens=77)
    assert rule("calm:threshold=0.7:decay=2:confidence=margin:min_layers=2:max_tokens=9:dtype=float32") == ExitRule(
        threshold=0.7, decay=2.0, confidence="margin", min_layers=2, max_tokens=9
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("calm:lambda=1", "unknown option lambda; allowed are threshold, decay, .*, max_tokens, dtype, temperature"),
        ("calm:runtime=static", "unknown option runtime"),
        ("calm:threshold=high", "'calm:threshold=high': threshold is 'high'; allowed is a number"),
        ("calm:min_layers=1.5", "min_layers is '1.5'; allowed is a whole number"),
        ("calm:confidence=best", "'calm:confidence=best': confidence is 'best'; allowed are state, margin, max"),
        ("calm:decay=-1", "decay is -1.0; allowed is 0 or more"),
    ],
)
def test_bad_options(text, says):
    with pytest.raises(InputError, match=says):
        load_methods(parse_methods(text), SETUP, lambda **_: pytest.fail("loaded in vain"))


def test_a_run_says_how_many_layers_ran(bundled, sentences, tmp_path):
    methods = "large,calm:threshold=2,calm:threshold=-1:min_layers=3,calm:threshold=0.9:decay=0"
    asked: list[str] = []

    def load(**options):
        asked.append(options["runtime"])
        return bundled

    before = bundled.large
    setup = Setup(dtype="float32", device="cpu", max_new_tokens=8, runtime="static")
    roster = load_methods(parse_methods(methods), setup, load)
    assert asked == ["static", "eager"] and bundled.large is before
    examples = [Example(str(at), text, ()) for at, text in enumerate(sentences[:3])]
    summary = evaluate(roster.methods, examples, out=tmp_path, warm_up=1, resamples=5)
    plain, never, least, some = summary.sets["texts"].methods.values()
    assert (plain.mean_layers, never.mean_layers, least.mean_layers) == (None, 8.0, 3.0)
    assert never.same_tokens == 1.0 and least.same_tokens < 1.0
    assert 1 <= some.mean_layers < 8
    assert least.counts["num_layers_run"] == 3 * least.counts["num_tokens_read"] == 3 * least.num_tokens
    details = summary.details[methods.split(",")[3]]
    assert details["num_layers"] == 8 and details["runtime"] == "eager" and details["dtype"] == "float32"
    assert details["rule"] == {
        "threshold": 0.9, "decay": 0.0, "confidence": "state", "min_layers": 1, "max_tokens": 8
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = [line["counts"] for line in lines if line["method"] == methods.split(",")[2]]
    assert [count["num_layers_run"] for count in counts] == [3 * count["num_tokens_read"] for count in counts]
    heading, *rows = speed_rows(summary, "texts")
    assert [row[heading.index("layers")] for row in rows[:3]] == ["–", "8.00", "3.00"]


def test_may_sample(bundled, sentences):
    methods = "large:seed=1,calm:threshold=2:seed=1,calm:threshold=2"
    roster = load_methods(parse_methods(methods), SETUP, lambda **_: bundled)
    large, same, greedy = (method(sentences[1]).token_ids for method in roster.methods)
    assert large == same != greedy


def test_the_weights_are_those_of_the_large_model(bundled):
    roster = load_methods(parse_methods("large,calm"), SETUP, lambda **_: bundled)
    large, calm = roster.methods
    assert calm.weight_bytes == large.weight_bytes
    roster.close()


def test_a_pair_that_cannot_leave_early_is_a_row_that_says_why():
    pair = BigLittleDecoder(shared("gpt2"), shared("gpt2", seed=1))
    roster = load_methods(parse_methods("large,calm"), SETUP, lambda **_: pair)
    assert [method.name for method in roster.methods] == ["large"]
    assert roster.failed == {"calm": "CALM runs t5 and mt5 checkpoints, this is a gpt2"}
