"""Scores from summed statistics are the libraries' own corpus scores."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from bild.data.quality import MeanMetric, metrics, misjudges, quality_metric
from bild.data.words import words
from bild.errors import InputError
from bild.evaluation import Example, evaluate
from bild.evaluation.table import print_summary
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


@pytest.mark.parametrize(
    "text",
    [
        "Собака бежит по парку.",
        "一只狗在公园里奔跑。",
        "犬が公園を走っている。",
        "الكلب يركض في الحديقة.",
        "Ο σκύλος τρέχει στο πάρκο.",
        "कुत्ता पार्क में दौड़ रहा है।",
        "สุนัขวิ่งอยู่ในสวนสาธารณะ",
        "개가 공원에서 달리고 있다.",
        "ở đó",
        "👍",
        "?!",
    ],
)
def test_rouge_of_the_same_text_is_100_in_every_script(text):
    for name in ("rouge1", "rougeL"):
        metric = MeanMetric(name)
        assert metric.score(metric.statistics(text, [text])) == pytest.approx(100)
        assert metric.score(metric.statistics("entirely different", [text])) == 0
        assert metric.score(metric.statistics("", [text])) == 0


def test_rouge_counts_words_of_other_scripts_by_value():
    """Four words of five in Russian, three characters of four in Chinese."""
    metric = MeanMetric("rouge1")
    russian = metric.statistics("собака бежит по лесу вечером", ["собака бежит по парку вечером"])
    chinese = metric.statistics("我喜欢猫", ["我喜欢狗"])
    assert [metric.score(russian), metric.score(chinese)] == pytest.approx([80, 75])


@pytest.mark.parametrize("text", [*TEXTS, "It's 3.5% -- NOT_BAD, is it? Running runners ran."])
def test_words_of_ascii_are_those_of_rouge_score(text):
    assert words(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_words_keep_their_accents_and_vowel_signs():
    assert words("Der Hund läuft, café!") == ["der", "hund", "läuft", "café"]
    assert words("cafe\u0301") == words("café") and words("कुत्ता") == ["कुत्ता"]
    assert words("ＡＢＣ 猫だ") == ["abc", "猫", "だ"]


CHINESE = ["一只狗在公园里奔跑。", "一个男人在弹吉他。"]


@pytest.mark.parametrize("tokenizer", ["zh", "char"])
def test_bleu_finds_words_as_it_is_asked_to(tokenizer):
    texts, references = ["一只猫在公园里奔跑。", CHINESE[1]], [[one] for one in CHINESE]
    bleu = quality_metric(f"bleu:{tokenizer}")
    rows = np.array([bleu.statistics(*pair) for pair in zip(texts, references, strict=True)])
    expected = sacrebleu.corpus_bleu(texts, streams(references), tokenize=tokenizer)
    assert bleu.score(rows.sum(0).tolist()) == pytest.approx(expected.score) and 50 < expected.score < 95
    assert f"tok:{tokenizer}" in bleu.signature(1)


def test_bleu_by_spaces_says_nothing_of_texts_without_spaces():
    assert "takes a sentence without spaces for one word" in misjudges(quality_metric("bleu"), CHINESE)
    assert misjudges(quality_metric("bleu:zh"), CHINESE) is misjudges(quality_metric("chrf"), CHINESE) is None
    assert misjudges(quality_metric("bleu"), ["Der Hund läuft im Park, 犬."]) is None


def test_a_run_on_chinese_says_so_and_prints_the_signature(capsys):
    members = [Example(str(at), str(at), (one,)) for at, one in enumerate(CHINESE)]
    # By spaces each is one word, so that the same text has no four words in a row and scores nothing.
    for tokenizer, notes, score in (("13a", 1, 0), ("zh", 0, 100)):
        clock = Clock()
        method = Fake("large", clock, write=lambda source: CHINESE[int(source)])
        summary = evaluate([method], members, clock=clock, resamples=10, bleu_tokenizer=tokenizer)
        assert len(summary.notes) == notes
        assert summary.sets["texts"].methods["large"].quality["bleu"].value == pytest.approx(score)
        print_summary(summary)
        assert f"BLEU: nrefs:1|case:mixed|eff:no|tok:{tokenizer}|" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("meteor", "metric is 'meteor'; allowed are bleu, chrf, "),
        ("chrf:zh", "metric is 'chrf:zh'"),
        ("bleu:moses", "BLEU's tokenizer is 'moses'; allowed are 13a, "),
    ],
)
def test_metrics_that_are_none(name, says):
    with pytest.raises(InputError, match=says):
        quality_metric(name)


def test_a_tokenizer_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(InputError, match=r"tokenizer ja-mecab cannot be used .*pip install 'sacrebleu\[ja\]'"):
        quality_metric("bleu:ja-mecab")
