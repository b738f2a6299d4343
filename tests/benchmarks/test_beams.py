"""The table of beam searches: passes, tokens read, and layers by confidence."""

from __future__ import annotations

from beams import agreement, render, row

from bild import Result
from bild.decoding import Commit, Work
from tests.networks import word_tokenizer


def result(*rounds: Commit) -> Result:
    return Result.of(list(rounds), word_tokenizer(), 0.1, 0.2)


RESULTS = [
    result(
        Commit(
            0,
            (5, 2, 3),
            ("small",) * 3,
            (5, 6, 7),
            1,
            "window",
            work={"large": Work(1, 9)},
            confidences=(0.95, 0.31, 0.99),
        ),
        Commit(0, (6,), ("large",), (8,), 1, "unsure", work={"large": Work(1, 5)}, confidences=(0.35,)),
        Commit(0, (1,), ("large",), (), 0, "unsure", True, "eos", {"large": Work(1, 2)}, confidences=(1.0,)),
    ),
    result(Commit(0, (5, 2, 3, 1), ("small",) * 4, (5,), 1, "window", True, "eos", {"large": Work(1, 4)}, (0.3,))),
]


def test_a_way_is_counted_a_text():
    found = row("exact", RESULTS, [0.010, 0.020], [["w5 w2 w3 w6", "w5 w2 w3"]], RESULTS[::-1])
    assert (found["ms"], found["passes"], found["read"], found["layers"]) == (15.0, 2.0, 10.0, 1.75)
    assert (found["same_text"], found["texts"], found["bleu"]) == (0, 2, 100.0)


def test_layers_behind_the_first_that_went_say_nothing():
    assert agreement(RESULTS) == [
        {"confidence": 0.3, "layers": 3, "chosen": 0.667},
        {"confidence": 0.9, "layers": 2, "chosen": 0.5},
    ]


def test_the_page_has_both_tables():
    page = render(
        "Here.", [row("exact", RESULTS, [0.010, 0.020], [["w5 w2 w3 w6", "w5 w2 w3"]], RESULTS)], agreement(RESULTS)
    )
    assert "| exact | 100.0 | 2 of 2 | 15.0 | 2.0 | 10.0 | 1.75 |" in page
    assert "| confidence from | 0.3 | 0.9 |" in page and "| chosen | 67% | 50% |" in page
