"""Spec-Bench: the questions, two turns, perplexity, figures, and a run that goes on."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bild import Policy
from bild.decoding import Stats
from bild.errors import InputError
from bild.evaluation.journal import Record
from bild.evaluation.own import PolicyMethod
from bild.evaluation.spec_bench import Question, read_questions, spec_bench
from bild.evaluation.spec_bench.dialogue import Dialogue, Surprises
from bild.evaluation.spec_bench.figures import Answer, group_figures
from bild.evaluation.spec_bench.table import as_markdown
from bild.evaluation.surprise import perplexity, surprise_of
from tests.evaluation.chats import ASSISTANT, USER, chat_pair
from tests.networks import EOS, forward, shared

TWO = Question("81", "dialogue", ("w7 w8 w9", "w10 w11"))
ONE = Question("161", "translation", ("Translate German to English: w12",))
OPTIONS = {"max_new_tokens": 6}


def write(path, *rows: object):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(id: object, category: object = "qa", turns: object = ("Who?",), **more: object) -> dict:
    return {"question_id": id, "category": category, "turns": turns, **more}


def method(name: str, policy: Policy | None = None) -> PolicyMethod:
    return PolicyMethod(name, chat_pair(), getattr(Policy, name)() if policy is None else policy, dict(OPTIONS))


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def test_questions_are_read_by_group(tmp_path):
    file = write(
        tmp_path / "q.jsonl",
        row(1, "rag"),
        row(2, "coding", ["a", "b"], reference=["c"]),
        row(3, "stem", ["d", "e"]),
        row(4, "own"),
        row(5, turns=[]),
        row(6, turns=["", "x"]),
        row(None),
        row(7, 3),
        row(8, turns=["a\x00"]),
    )
    found = read_questions(file)
    assert [(each.id, each.group) for each in found.questions] == [
        ("2", "dialogue"), ("3", "dialogue"), ("1", "rag"), ("4", "own"),
    ]  # fmt: skip
    assert found.questions[0].turns == ("a", "b") and found.questions[0].example.source == "a\n\nb"
    assert [line.split(":")[0] for line in found.skipped] == [f"line {n}" for n in (5, 6, 7, 8, 9)]
    assert [each.id for each in read_questions(file, limit=1).questions] == ["2", "1", "4"]
    assert [each.id for each in read_questions(file, groups=["own", "rag"]).questions] == ["1", "4"]


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"source": "x"}], {}, "holds no question; line 1: no question_id.*; a line has question_id, category"),
        ([row(1), row("1")], {}, "two questions of the id 1; give each"),
        ([row(1)], {"groups": ["rag"]}, "group is 'rag'; .* has qa"),
        ([row(1)], {"limit": 0}, "limit is 0; allowed is 1 or more"),
        ([row(1, " all ")], {}, "holds no question; line 1: the category all, which means every group here"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, rows, options, says):
    with pytest.raises(InputError, match=says):
        read_questions(write(tmp_path / "q.jsonl", *rows), **options)


def test_what_was_skipped_is_counted_and_the_first_are_named(tmp_path):
    bad = [row(number, turns=[]) for number in range(2, 7)]
    assert read_questions(write(tmp_path / "q.jsonl", row(1), *bad)).notes == [
        "skipped line 2: no turns that are a list of texts; line 3: no turns that are a list of texts; "
        "line 4: no turns that are a list of texts; 5 lines in all"
    ]
    assert read_questions(write(tmp_path / "q.jsonl", row(1), bad[0])).notes == [
        "skipped line 2: no turns that are a list of texts"
    ]
    assert read_questions(write(tmp_path / "q.jsonl", row(1))).notes == []


def test_questions_whose_turns_join_to_one_text_are_asked_each(tmp_path):
    """A blank line may be in a turn: each is put as it is written."""
    turns = [("w7\n\nw8",), ("w7", "w8"), ("w7", "w8"), ("w7", "w8\n\nw9"), ("w7\n\nw8", "w9")]
    asked = [Question(str(at), "a|b", each) for at, each in enumerate(turns)]
    summary = spec_bench([method("large")], asked, out=tmp_path, warm_up=0, resamples=5, notes=["skipped line 3"])
    records = [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text().splitlines()]
    counts = {record["id"]: len(record["counts"]) for record in records}
    assert counts == {"0": 1, "1": 2, "2": 2, "3": 2, "4": 2}
    alone = {each.id: Dialogue(method("large"), {"x": each})("x").text for each in asked}
    assert {record["id"]: record["text"] for record in records} == alone
    assert summary.notes == ["skipped line 3"]
    page = (tmp_path / "spec-bench.md").read_text()
    assert "a\\|b (5)" in page and "- skipped line 3" in page


def test_the_second_turn_comes_behind_the_first_answer():
    """The prompts, by hand: the template's marks, the first answer without its end token, then the second turn."""
    pair = chat_pair()
    output = Dialogue(method("large"), {TWO.example.source: TWO})(TWO.example.source)
    first = [USER, 7, 8, 9, ASSISTANT]
    (one,) = pair.generate([first], "large", **OPTIONS)
    second = [*first, *ids(one.text), EOS, USER, 10, 11, ASSISTANT]
    (two,) = pair.generate([second], "large", **OPTIONS)
    assert output.token_ids == one.token_ids + two.token_ids and output.text == f"{one.text}\n\n{two.text}"
    assert output.counts == {
        "num_tokens_of_turn_1": len(one.token_ids), "num_tokens_of_turn_2": len(two.token_ids),
    }  # fmt: skip
    assert output.stats == Stats.total([one.stats, two.stats]) and output.ttft_s > 0
    # What the large model is asked about the answers is what it was asked for them.
    record = Record("dialogue", "81", "large", output.text, tuple(output.token_ids), counts=output.counts)
    nats = Surprises(pair).of(TWO, record)
    assert nats == pytest.approx(
        sum(by_hand(pair.large.network, *each) for each in ((first, one.token_ids), (second, two.token_ids))), rel=1e-4
    )


def by_hand(network, prompt: list[int], tokens: list[int], source: list[int] = ()) -> float:
    scores = forward(network, source, [*prompt, *tokens]).log_softmax(-1)
    return -sum(float(scores[len(prompt) - 1 + at, token]) for at, token in enumerate(tokens))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_surprise_is_that_of_one_pass_over_the_whole_text(name, monkeypatch):
    from bild.evaluation import surprise
    from bild.models import run_pair

    network = shared(name)
    model, _ = run_pair(network, network, "eager")
    source = [5, 6, 7, EOS] if name == "t5" else []
    prompt, tokens = ([0] if name == "t5" else [4, 9, 3]), [8, 20, 2, 31, 6, EOS]
    for piece in (1, 4, 32):
        monkeypatch.setattr(surprise, "PIECE", piece)
        assert surprise_of(model, source, prompt, tokens) == pytest.approx(by_hand(network, prompt, tokens, source))
    assert surprise_of(model, source, prompt, []) == 0.0


def test_perplexity():
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7)
    assert perplexity(0.0, 0) is None and perplexity(1e6, 1) == math.inf


def answer(tokens: int, seconds: float, nats: float, first: int = 0, accepted: int = 0, rounds: int = 0) -> Answer:
    stats = Stats(num_rounds=rounds, num_accepted_tokens=accepted)
    record = Record("qa", "x", "m", "", (first, *range(1, tokens)), seconds, stats={
        name: getattr(stats, name) for name in Stats.__dataclass_fields__
    })  # fmt: skip
    return Answer(record, nats)


def test_figures_are_spec_bench_s():
    """Two questions at 10 and 30 tokens a second against 5 and 5: 20 / 5, not the 60 / 4 s of all tokens."""
    answers = [
        {"large": answer(20, 4.0, 10.0), "bild": answer(20, 2.0, 10.0, accepted=15, rounds=5)},
        {"large": answer(20, 4.0, 30.0), "bild": answer(60, 2.0, 80.0, first=9, accepted=5, rounds=5)},
    ]
    figures = group_figures(answers, "large", 1, resamples=200)
    bild, large = figures.methods["bild"], figures.methods["large"]
    assert (figures.num_questions, figures.num_left_out) == (2, 1)
    assert (bild.tokens_per_second, bild.speedup.value) == (20.0, 4.0)
    assert (bild.speedup.low, bild.speedup.high) == (2.0, 6.0)
    assert bild.mean_acceptance_length == 1 + 20 / 10 and large.mean_acceptance_length is None
    assert (bild.same_tokens, large.same_tokens) == (0.5, 1.0)
    assert bild.perplexity == pytest.approx(math.exp(90 / 80)) and large.perplexity == pytest.approx(math.e)
    assert bild.perplexity_change.value == pytest.approx(100 * (math.exp(90 / 80 - 1) - 1))
    assert (large.speedup.low, large.speedup.high, large.perplexity_change.high) == (1.0, 1.0, 0.0)


def test_a_run_ends_to_end_and_goes_on(tmp_path):
    policies = {"large": None, "exact": None, "small": None}
    calls = []

    class Watched(PolicyMethod):
        def __call__(self, source):
            calls.append((self.name, source))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return super().__call__(source)

    def methods(kind=PolicyMethod):
        return [kind(name, chat_pair(), getattr(Policy, name)(), dict(OPTIONS)) for name in policies]

    questions = [TWO, ONE, Question("162", "translation", ("w13 w14",))]
    with pytest.raises(KeyboardInterrupt):
        spec_bench(methods(Watched), questions, out=tmp_path, warm_up=0, resamples=20)
    calls.clear()
    summary = spec_bench(methods(), questions, out=tmp_path, warm_up=0, resamples=20)
    assert list(summary.groups) == ["dialogue", "translation", "all"]
    whole = summary.whole.methods
    assert whole["exact"].same_tokens == 1.0 and whole["small"].same_tokens < 1.0
    assert whole["exact"].perplexity_change.value == pytest.approx(0.0)
    # The large model's own greedy text is not always the likeliest one, but the small one's is not likelier here.
    assert whole["small"].perplexity > whole["large"].perplexity and whole["exact"].mean_acceptance_length > 1
    assert summary.groups["translation"].num_questions == 2
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"run.json", "outputs.jsonl", "perplexity.jsonl", "summary.json", "spec-bench.md"}
    assert "| exact | 100.0% | 100.0% | 100.0% |" in (tmp_path / "spec-bench.md").read_text(encoding="utf-8")
    read = (tmp_path / "perplexity.jsonl").read_text(encoding="utf-8")
    again = spec_bench(methods(), questions, out=tmp_path, warm_up=0, resamples=20)
    assert again.groups == summary.groups and (tmp_path / "perplexity.jsonl").read_text(encoding="utf-8") == read


def test_a_question_that_does_not_fit_is_left_out():
    long = Question("482", "rag", (" ".join(["w9"] * 80),))
    summary = spec_bench([method("large")], [ONE, long], warm_up=0, resamples=2)
    assert list(summary.groups) == ["translation"] and summary.num_left_out == 1
    assert "- 1 question was left out: 482, large: the text has" in as_markdown(summary)


@pytest.mark.parametrize(
    ("template", "questions", "options", "says"),
    [
        (None, [ONE], {}, "has no chat template, and Spec-Bench is a chat; take an instruct model"),
        ("x", [], {}, "there are no questions"),
        ("x", [ONE], {"warm_up": -1}, "warm_up is -1"),
        ("x", [ONE], {"resamples": 0}, "resamples is 0"),
        ("x", [ONE], {"seed": -1}, "seed is -1; allowed is 0 or more"),
        ("x", [ONE], {"baseline": "small"}, "baseline is 'small'; allowed are large"),
    ],
)
def test_refusals(template, questions, options, says):
    own = PolicyMethod("large", chat_pair(template=template), Policy.large(), {})
    with pytest.raises(InputError, match=says):
        spec_bench([own], questions, **options)


def test_an_encoder_decoder_reads_texts_without_their_instruction():
    from bild import BigLittleDecoder
    from tests.networks import build, word_tokenizer

    network = build("t5", seed=1, dtype=torch.float32)
    pair = BigLittleDecoder(network, network, word_tokenizer())
    own = [PolicyMethod("large", pair, Policy.large(), dict(OPTIONS))]
    with pytest.raises(InputError, match="no second turn; choose with --groups translation"):
        spec_bench(own, [TWO])
    own = [PolicyMethod("large", pair, Policy.large(), dict(OPTIONS))]
    summary = spec_bench(own, [ONE], warm_up=0, resamples=2)
    (alone,) = pair.generate(["w12"], "large", **OPTIONS)
    assert summary.whole.methods["large"].num_tokens == len(alone.token_ids)
