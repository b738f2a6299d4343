"""Scores from summed statistics are the libraries' own corpus scores."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from bild.data.quality import metrics
from bild.evaluation import Example, evaluate
from tests.evaluation.fakes import Clock, Fake

TEXTS = [
    "A man in an orange hat is starring at something.",
    "Boston terriers are running on the lush green grass in front of a white fence.",
    "the girls are breaking sticks",
    "",
    "Five people , wearing winter jackets and helmets stand in the snow.",
]
ONE = [
    ["A man in an orange hat starring at something."],
    ["A Boston Terrier is running on lush green grass in front of a white fence."],
    ["A girl in karate uniform breaking a stick with a front kick."],
    ["Nothing was written here."],
    ["Five people wearing winter jackets and helmets stand in the snow, with snowmobiles in the background."],
]
TWO = [[*references, references[0].replace(" is ", " was ").lower()] for references in ONE]
VARYING = [references[: 1 + at % 2] for at, references in enumerate(TWO)]
BY_NAME = {metric.name: metric for metric in metrics()}


def score(name: str, references: list[list[str]]) -> float:
    metric = BY_NAME[name]
    rows = np.array([metric.statistics(*pair) for pair in zip(TEXTS, references, strict=True)])
    assert rows.shape == (len(TEXTS), metric.size)
    return metric.score(rows.sum(0).tolist())


def streams(references: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[row[at] if at < len(row) else None for row in references] for at in range(most)]


@pytest.mark.parametrize("references", [ONE, TWO, VARYING], ids=["one", "two", "varying"])
def test_bleu_and_chrf_are_sacrebleus(references):
    assert score("bleu", references) == pytest.approx(sacrebleu.corpus_bleu(TEXTS, streams(references)).score)
    assert score("chrf", references) == pytest.approx(sacrebleu.corpus_chrf(TEXTS, streams(references)).score)
    assert 5 < score("bleu", references) < 95


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("references", [ONE, TWO], ids=["one", "two"])
def test_rouge_is_googles_with_stemming(name, references):
    scorer = RougeScorer([name], use_stemmer=True)
    own = [scorer.score_multi(row, text)[name].fmeasure for text, row in zip(TEXTS, references, strict=True)]
    assert score(name, references) == pytest.approx(100 * np.mean(own))
    assert score(name, references) != pytest.approx(
        100
        * np.mean(
            [RougeScorer([name]).score_multi(r, t)[name].fmeasure for t, r in zip(TEXTS, references, strict=True)]
        )
    )


def test_exact_match_takes_any_reference_and_ignores_space_around():
    metric = BY_NAME["exact_match"]
    rows = [metric.statistics(" yes\n", ["no", "yes"]), metric.statistics("Yes", ["yes"])]
    assert metric.score([sum(column) for column in zip(*rows, strict=True)]) == 50.0


def test_signatures_are_sacrebleus_and_say_how_many_references():
    for name, own in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        own.corpus_score(TEXTS, streams(TWO))
        assert BY_NAME[name].signature(2) == str(own.get_signature())
    assert "nrefs:var" in BY_NAME["bleu"].signature(None)
    assert "stemmer:porter" in BY_NAME["rougeL"].signature(1)
    assert BY_NAME["rouge1"].signature(None).startswith("nrefs:var")


def test_a_whole_run_has_the_libraries_scores_of_each_set_and_of_all():
    """Examples without a reference take no part in quality, but do in times."""
    members = [Example(str(at), str(at), tuple(row)) for at, row in enumerate(ONE)]
    sets = {"first": members[:2], "rest": [*members[2:], Example("x", "3")]}
    clock = Clock()
    method = Fake("large", clock, write=lambda source: TEXTS[int(source)])
    summary = evaluate([method], sets, clock=clock, resamples=10)
    for name, part in (("first", slice(0, 2)), ("rest", slice(2, None)), ("all", slice(None))):
        values = summary.sets[name].methods["large"].quality
        assert values["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(TEXTS[part], streams(ONE[part])).score)
        assert values["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(TEXTS[part], streams(ONE[part])).score)
    rest = summary.sets["rest"]
    assert (rest.num_examples, rest.num_with_references, rest.methods["large"].total_s) == (4, 3, pytest.approx(4))
