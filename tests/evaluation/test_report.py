"""The page and the tables."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

from bild.decoding import Stats
from bild.evaluation import Example, PeakMemory, evaluate
from bild.evaluation.cells import quality_rows, speed_rows
from bild.evaluation.plots import _label
from bild.evaluation.report import marked
from bild.evaluation.table import fitting, print_summary
from tests.evaluation.fakes import Clock, Fake, examples

EVIL = "<script>alert('x')</script> & [bold]"
STATS = Stats(
    num_tokens=10, num_rounds=4, num_draft_tokens=8, num_accepted_tokens=6, num_rollbacks=1, num_large_tokens=4
)


def run(tmp_path, **options):
    clock = Clock()
    methods = [
        Fake("large", clock, 2.0, lambda text: EVIL + text),
        Fake("bild:x=<i>", clock, 1.0, lambda text: EVIL + text[::-1], stats=STATS),
    ]
    members = [*examples(3), Example("9", EVIL, (EVIL,))]
    return evaluate(methods, members, out=tmp_path, clock=clock, resamples=20, failed={"<b>": EVIL}, **options)


class Page(HTMLParser):
    """Every start tag, and whether all were closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_needs_no_other_file(tmp_path):
    run(tmp_path, notes=[EVIL])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and {"script", "b", "i", "link"}.isdisjoint(page.tags)
    assert text.count("&lt;script&gt;") >= 6
    assert len(page.links) == 2 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert all(b"<svg" in base64.b64decode(link.partition(",")[2]) for link in page.links)
    assert "http://" not in re.sub(r"base64,[^\"]*", "", text)
    for needed in ("nrefs:1|case:mixed", "stemmer:porter", "rounds that ended in a rollback / rounds", "ROUGE-L"):
        assert needed in text


def test_outputs_that_differ_are_side_by_side(tmp_path):
    run(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The first 4 of 4" in text and "<mark>" in text
    clock = Clock()
    evaluate([Fake("a", clock), Fake("b", clock)], examples(2), out=tmp_path / "same", clock=clock, resamples=5)
    assert "All methods wrote the same texts" in (tmp_path / "same" / "report.html").read_text(encoding="utf-8")


def test_words_that_differ_are_marked():
    assert marked("the black <cat> sat", "the cat sat") == "the <mark>black &lt;cat&gt;</mark> sat"
    assert marked("the cat sat", "the cat sat down") == "the cat sat"
    assert marked("", "x") == ""


def test_tables_say_what_the_summary_says(tmp_path, capsys):
    summary = run(tmp_path, memory_of=lambda method, _: PeakMemory(500_000_000, 200_000_000))
    quality, speed = quality_rows(summary, "texts", everything=False), speed_rows(summary, "texts")
    assert quality[0] == ["method", "BLEU", "Δ BLEU", "chrF", "Δ chrF"]
    assert quality[1][2] == "–" and re.fullmatch(r"-?\+?\d+\.\d\d \[[-+]\d+\.\d\d, [-+]\d+\.\d\d\]", quality[2][2])
    row = dict(zip(speed[0], speed[2], strict=True))
    assert "layers" not in row
    assert row == row | {
        "speedup": "2.00 [2.00, 2.00]", "median ms": "1000.0", "p95 ms": "1000.0", "first ms": "250.0",
        "acc. length": "2.50", "rollbacks": "25.0%", "by large": "40.0%", "weights MB": "12", "peak MB": "200",
    }  # fmt: skip
    print_summary(summary)
    shown = capsys.readouterr().out
    assert "2.00 [2.00, 2.00]" in shown and "[bold]" in shown and "texts: 4 texts; against large" in shown
    assert "bild:x=<i>" in shown and "<b>: no figures" in shown


def test_the_task_chooses_the_metrics_shown_first(tmp_path):
    summary = run(tmp_path, task="summarization")
    assert quality_rows(summary, "texts", everything=False)[0][1::2] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    everything = quality_rows(summary, "texts", everything=True)[0][1::2]
    assert everything == ["ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU", "chrF", "exact match"]


def test_long_names_are_cut_between_options():
    name = "bild:fallback_threshold=0.3:rollback_threshold=4:verify_end=0.6"
    assert _label(name) == "bild:fallback_threshold=0.3\nrollback_threshold=4\nverify_end=0.6"
    assert _label("large") == "large"


def test_a_narrow_terminal_gets_several_tables_with_whole_numbers(tmp_path, capsys, monkeypatch):
    rows = [["method", "a", "bb", "c" * 20], ["large", "1", "2", "3"]]
    assert fitting(rows, 200) == [rows]
    assert fitting(rows, 20) == [[row[:3] for row in rows], [[row[0], row[3]] for row in rows]]
    assert fitting([], 80) == []
    summary = run(tmp_path)
    from bild.evaluation import table

    monkeypatch.setattr(table, "WIDTH", 80)
    capsys.readouterr()
    print_summary(summary)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and shown.count("2.00 [2.00, 2.00]") == 1
    assert all(heading in shown for heading in ("BLEU", "p95 ms", "peak MB")) and "…" not in shown
