"""bild evaluate, end to end on the bundled pair."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from bild import BigLittleDecoder
from bild.cli import main, pair_options

ROWS = [
    {"source": "Ich habe Hunger.", "target": "I am hungry."},
    {"source": "Wie spät ist es?", "target": "What time is it?"},
    {"source": "Ein Junge mit Kopfhörern sitzt auf einer Bank.", "target": "A boy with headphones sits on a bench."},
    {"source": "Der Mann liest ein Buch.", "target": ["The man is reading a book.", "The man reads a book."]},
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "news.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "nonsense\n", encoding="utf-8")
    return file


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """Run the program on the bundled pair, loaded once: ``run(…) -> (code, stdout, stderr)``."""
    monkeypatch.setitem(sys.modules, "bild.evaluation.peers", SimpleNamespace(PEERS={}))
    loaded = []
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: (loaded.append(options), bundled)[1])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", "evaluate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capfd.readouterr()

    run.loaded = loaded
    return run


def summary_of(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def test_end_to_end(run, bundled, data, tmp_path):
    folder = tmp_path / "out"
    methods = "large,small,exact,bild:fallback_threshold=0.2:rollback_threshold=5"
    code, out, err = run(
        "--methods", methods, "--data", data, "--out", folder, "--no-memory", "--json", "--warm-up", 1,
        "--device", "cpu", "--dtype", "float32", "--resamples", 50, "--seed", 3,
    )  # fmt: skip
    assert code == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "outputs.jsonl",
        "report.html",
        "run.json",
        "summary.json",
    ]
    summary = summary_of(out)
    assert summary == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    figures = summary["sets"]["news"]
    assert list(figures["methods"]) == methods.split(",")
    assert (figures["num_examples"], figures["methods"]["exact"]["same_tokens"]) == (4, 1.0)
    assert figures["methods"]["exact"]["difference"]["bleu"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert figures["methods"]["small"]["large_share"] == 0.0
    assert "nrefs:var" in figures["signatures"]["bleu"]
    assert summary["bootstrap"] == {"resamples": 50, "seed": 3}
    records = [json.loads(line) for line in (folder / "outputs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 16
    large = {record["id"]: record["text"] for record in records if record["method"] == "large"}
    assert list(large.values()) == [r.text for r in bundled.generate([row["source"] for row in ROWS], "large")]
    assert "news: 4 texts; against large" in out and "news: 1 of 5 rows skipped: line 5: not JSON" in err
    assert "4 of 4 texts" in err and "report.html" in err
    assert [options["dtype"] for options in run.loaded] == ["float32"]


def test_ctrl_c_leaves_a_run_that_goes_on(run, bundled, data, tmp_path, monkeypatch):
    calls, each = [], BigLittleDecoder.generate

    def generate(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return each(self, *arguments, **options)

    monkeypatch.setattr(BigLittleDecoder, "generate", generate)
    command = ("--methods", "large,bild", "--data", data, "--out", tmp_path / "out", "--no-memory", "--warm-up", 0)
    code, out, err = run(*command)
    assert (code, out) == (130, "") and "interrupted; the same command goes on where it stopped" in err
    del calls[:]
    monkeypatch.setattr(BigLittleDecoder, "generate", lambda self, *a, **k: (calls.append(a), each(self, *a, **k))[1])
    code, out, _ = run(*command)
    # Two texts were done by both methods, two were not.
    assert code == 0 and len(calls) == 4 and "news: 4 texts" in out


def test_options_reach_the_run(run, bundled, tmp_path, monkeypatch):
    seen, each = [], BigLittleDecoder.generate

    def generate(self, inputs, policy, **options):
        seen.append((inputs[0], policy, options))
        return each(self, inputs, policy, **options)

    monkeypatch.setattr(BigLittleDecoder, "generate", generate)
    (tmp_path / "a.de").write_text("Guten Morgen.\nWie geht es dir?\n", encoding="utf-8")
    (tmp_path / "a.en").write_text("Good morning.\nHow are you?\n", encoding="utf-8")
    code, out, _ = run(
        "--methods", "small,large", "--data", tmp_path / "a.de", "--target-data", tmp_path / "a.en", "--limit", 1,
        "--out", tmp_path / "out", "--prefix", "Heute: ", "--max-new-tokens", 3, "--task", "completion",
        "--baseline", "small", "--warm-up", 0, "--no-memory", "--json", "--runtime", "eager",
    )  # fmt: skip
    assert code == 0 and [text for text, _, _ in seen] == ["Heute: Guten Morgen."] * 2
    assert all(options == {"max_new_tokens": 3, "chat": False} for _, _, options in seen)
    summary = summary_of(out)
    assert (summary["baseline"], summary["task"]) == ("small", "completion")
    assert summary["configuration"]["max_new_tokens"] == 3 and "exact match" in out
    assert summary["sets"]["a.de"]["num_with_references"] == 1


def test_columns_and_several_sets(run, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.csv").write_text("de,en\nGuten Morgen.,Good morning.\n", encoding="utf-8")
    files = (part for folder in ("x", "y") for part in ("--data", tmp_path / folder / "test.csv"))
    code, out, _ = run(
        *files, "--source-column", "de", "--target-column", "en", "--methods", "large", "--out", tmp_path / "out",
        "--no-memory", "--warm-up", 0, "--json",
    )  # fmt: skip
    assert code == 0 and list(summary_of(out)["sets"]) == ["x/test", "y/test", "all"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "warp"], "method is 'warp'; allowed are bild, exact, speculative_sampling"),
        (["--methods", "bild:gamma=2"], "unknown option gamma"),
        (["--methods", "bild:fallback_threshold=-1"], "fallback_threshold is -1.0; allowed is 0 to 1"),
        (["--data", "/no/such.jsonl"], "cannot read /no/such.jsonl: No such file"),
        (["--target-data", "a", "--target-data", "b"], "--target-data 2 times"),
        (["--limit", "0"], "limit is 0"),
        (["--task", "poetry"], "task is 'poetry'; allowed are translation"),
        (["--baseline", "exact"], "baseline is 'exact'; allowed are large"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--warm-up", "-1"], "warm_up is -1"),
        (["--resamples", "0"], "resamples is 0"),
        (["--source-column", "text"], "no usable example; line 1: no column 'text'; there are source, target"),
        (["--warp"], "No such option"),
    ],
)
def test_errors_are_one_line_and_exit_2(run, data, tmp_path, arguments, says):
    given = [] if "--data" in arguments else ["--data", data]
    methods = [] if "--methods" in arguments else ["--methods", "large"]
    code, out, err = run(*given, *methods, "--out", tmp_path / "out", "--no-memory", *arguments)
    last = err.splitlines()[-1]
    assert (code, out) == (2, "") and last.startswith("error: ") and says in last
    assert all("rows skipped" in line for line in err.splitlines()[:-1])


def test_another_run_in_the_folder_is_refused_until_fresh(run, data, tmp_path):
    command = ("--methods", "small", "--data", data, "--out", tmp_path / "out", "--no-memory", "--warm-up", 0)
    assert run(*command)[0] == 0
    code, _, err = run(*command, "--limit", 2)
    assert code == 2 and "data.news.examples is 4 there and 2 here" in err.splitlines()[-1]
    assert run(*command, "--limit", 2, "--fresh")[0] == 0


def test_out_and_data_are_needed(run, data, tmp_path):
    assert "--out" in run("--data", data)[2] and "--data" in run("--out", tmp_path)[2]
    both = run("--data", data, "--spec-bench", data, "--out", tmp_path)
    assert both[0] == 2 and "give --data or --spec-bench, one of them" in both[2]
    assert "--groups are those of --spec-bench" in run("--data", data, "--groups", "qa", "--out", tmp_path)[2]


def test_spec_bench(run, tmp_path):
    """On a translator: the instruction of its group is left out, and the second turns of others are refused."""
    start = "Translate German to English: "
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Eins.", "Zwei."]},
        *(
            {"question_id": n, "category": "translation", "turns": [start + row["source"]]}
            for n, row in enumerate(ROWS)
        ),
        {"question_id": 99, "category": "translation"},
    ]
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--spec-bench", file, "--out", tmp_path / "out", "--runtime", "eager", "--resamples", 10, "--warm-up", 0]
    assert "no second turn; choose with --groups translation" in run(*command)[2]
    for name, value in (("--task", "chat"), ("--prefix", "x"), ("--source-column", "x"), ("--split", "validation")):
        assert f"{name} changes nothing with --spec-bench" in run(*command, name, value)[2]
    chosen = ["--groups", "translation", "--limit", 3, "--methods", "large,exact,exact:drafter=ngram+small"]
    code, out, err = run(*command, *chosen, "--max-new-tokens", 9, "--json")
    assert code == 0 and "skipped line 6: no turns that are a list of texts" in err
    assert "answering by 3 methods: 3 of 3 questions" in err and "spec-bench.md" in err
    summary = summary_of(out)
    assert list(summary["groups"]) == ["translation"] and summary["configuration"]["max_new_tokens"] == 9
    methods = summary["groups"]["translation"]["methods"]
    assert [each["same_tokens"] for each in methods.values()] == [1.0, 1.0, 1.0]
    assert methods["exact"]["mean_acceptance_length"] > 1.5 and "times as fast, against large" in out


def test_bleu_finds_words_as_it_is_asked_to(run, data, tmp_path):
    options = ["--methods", "small", "--data", data, "--no-memory", "--warm-up", 0, "--resamples", 5]
    code, out, _ = run(*options, "--out", tmp_path / "out", "--bleu-tokenizer", "char")
    assert code == 0 and "|tok:char|" in out
    # Nothing is decoded again for other figures of the same texts.
    assert "|tok:13a|" in run(*options, "--out", tmp_path / "out")[1]
    code, _, err = run(*options, "--out", tmp_path / "new", "--bleu-tokenizer", "moses")
    assert (code, err.splitlines()[-1].partition(";")[0]) == (2, "error: BLEU's tokenizer is 'moses'")
