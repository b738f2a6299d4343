"""A run on disk: resuming, refusing, failing methods, memory, files."""

from __future__ import annotations

import json
import math
import os

import pytest

from bild.decoding import Stats
from bild.errors import InputError, LoadError
from bild.evaluation import Example, PeakMemory, evaluate
from bild.evaluation.journal import Journal, Record
from tests.evaluation.fakes import Clock, Fake, examples

STATS = Stats(
    num_tokens=10, num_rounds=4, num_draft_tokens=8, num_accepted_tokens=6, num_rollbacks=1, num_large_tokens=4
)


def run(out, count=6, *, log=None, interrupt_at=None, **options):
    """Two methods of different cost; ``interrupt_at``: the call of the second that Ctrl-C hits."""
    clock, calls = Clock(), []

    def write(text: str) -> str:
        calls.append(text)
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt
        return text.upper().replace("THESE", "THOSE")

    methods = [Fake("large", clock, 3.0, log=log), Fake("bild", clock, 1.0, write, stats=STATS, log=log)]
    return evaluate(methods, examples(count), out=out, clock=clock, resamples=20, **({"warm_up": 0} | options))


def test_a_killed_run_goes_on_and_comes_to_the_same(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", interrupt_at=4)
    outputs = tmp_path / "killed" / "outputs.jsonl"
    lines = outputs.read_bytes().splitlines(keepends=True)
    # Three examples whole; of the fourth, whose turn began with bild, nothing; kill -9 cuts the last line.
    assert len(lines) == 6
    outputs.write_bytes(b"".join(lines)[:-20])
    log = []
    resumed = run(tmp_path / "killed", log=log)
    assert [source for _, source in log[::2]] == [example.source for example in examples(6)[2:]]
    assert resumed.sets == whole.sets and resumed.failures == whole.failures == []
    left = [json.loads(line) for line in outputs.read_text(encoding="utf-8").splitlines()]
    assert sorted((line["id"], line["method"]) for line in left) == sorted(
        (str(at), name) for at in range(6) for name in ("large", "bild")
    )


def test_a_half_done_example_is_decoded_again_as_a_whole(tmp_path):
    file = tmp_path / "outputs.jsonl"
    journal = Journal(["a", "b"], file)
    for id, method in (("0", "a"), ("0", "b"), ("1", "b")):
        journal.write(Record("set", id, method, "x", (5, 1), 0.1))
    journal.close()
    again = Journal(["a", "b"], file)
    again.close()
    assert again.done(("set", "0")) and not again.done(("set", "1"))
    assert again.records["set", "0"]["a"] == journal.records["set", "0"]["a"]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


def test_a_finished_run_is_not_decoded_again_and_may_get_another_baseline(tmp_path):
    first = run(tmp_path)
    log = []
    second = run(tmp_path, log=log, baseline="bild")
    assert log == []
    assert (first.baseline, second.baseline) == ("large", "bild")
    assert first.sets["texts"].methods["bild"].speedup.value == pytest.approx(3)
    assert second.sets["texts"].methods["large"].speedup.value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"warm_up": 2}, "warm_up is 0 there and 2 here"),
        ({"prefix": "x"}, 'prefix is "" there and "x" here'),
        ({"count": 5}, "data.texts.examples is 6 there and 5 here"),
        ({"settings": {"dtype": "float32"}}, 'dtype is null there and "float32" here'),
        ({"failed": {"peer": "why"}}, "methods is"),
    ],
)
def test_another_run_in_the_folder_is_refused_and_says_what_differs(tmp_path, options, says):
    run(tmp_path)
    with pytest.raises(InputError, match=r"holds a run with other settings: .*--fresh") as error:
        run(tmp_path, **options)
    assert says in str(error.value)
    log = []
    run(tmp_path, log=log, fresh=True, **options)
    assert log


def test_an_outputs_file_of_no_known_run_is_not_touched(tmp_path):
    (tmp_path / "outputs.jsonl").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="is of no known run"):
        run(tmp_path)
    assert (tmp_path / "outputs.jsonl").read_text(encoding="utf-8") == "precious"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        run(tmp_path / "file" / "out")


def failing_on(*numbers: int):
    def write(text: str) -> str:
        if int(text.split()[2]) in numbers:
            raise InputError("too long")
        return text.upper()

    return write


def test_texts_a_method_fails_on_count_for_nobody(tmp_path):
    clock = Clock(lambda call: 100.0 if call in (4, 5) else 1.0)
    methods = [Fake("large", clock, 2.0), Fake("b", clock, 1.0, failing_on(2))]
    summary = evaluate(methods, examples(6), out=tmp_path, clock=clock, warm_up=0, resamples=10)
    figures = summary.sets["texts"]
    assert (figures.num_examples, figures.num_left_out) == (5, 1)
    assert [(one.id, one.method, one.error) for one in summary.failures] == [("2", "b", "too long")]
    assert figures.methods["large"].num_tokens == 5 * 23
    assert "too long" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_method_that_fails_on_most_texts_is_left_out_instead_of_the_texts():
    clock = Clock()
    methods = [Fake("large", clock), Fake("b", clock), Fake("broken", clock, write=failing_on(1, 2, 3, 4))]
    summary = evaluate(methods, examples(6), clock=clock, resamples=10, failed={"peer": "not installed"})
    assert summary.methods == ["large", "b"] and summary.sets["texts"].num_examples == 6
    assert summary.failed == {"broken": "failed on 4 of 6 texts, first with: too long", "peer": "not installed"}
    with pytest.raises(InputError, match="the baseline 'broken' has no figures: failed on 4 of 6"):
        evaluate(methods, examples(6), clock=clock, resamples=10, baseline="broken")


def test_sets_are_summed_up_apart_and_together():
    clock = Clock()
    methods = [Fake("large", clock, 2.0), Fake("bild", clock, 1.0, lambda text: "X" if "1" in text else text.upper())]
    sets = {"one": examples(2), "two": [Example("0", "number 1", ("NUMBER 1",))]}
    summary = evaluate(methods, sets, clock=clock, resamples=10)
    assert {name: figures.num_examples for name, figures in summary.sets.items()} == {"one": 2, "two": 1, "all": 3}
    matches = {name: figures.methods["bild"].quality["exact_match"].value for name, figures in summary.sets.items()}
    assert matches == {"one": 50.0, "two": 0.0, "all": pytest.approx(100 / 3)}


def test_counts_of_a_policy_become_rates_and_peers_have_none(tmp_path):
    figures = run(tmp_path).sets["texts"].methods
    assert figures["bild"].mean_acceptance_length == 1 + 6 / 4
    assert (figures["bild"].acceptance_rate, figures["bild"].rollback_rate, figures["bild"].large_share) == (
        6 / 8,
        1 / 4,
        4 / 10,
    )
    assert figures["bild"].counts["num_rounds"] == 6 * 4
    assert (figures["large"].mean_acceptance_length, figures["large"].counts) == (None, None)


def test_agreement_with_the_baseline(tmp_path):
    figures = run(tmp_path).sets["texts"].methods
    assert (figures["large"].same_tokens, figures["large"].same_prefix) == (1.0, 1.0)
    # "TEXT NUMBER 0 OF THOSE" leaves "TEXT NUMBER 0 OF THESE" after 19 of 23 tokens.
    assert (figures["bild"].same_tokens, figures["bild"].same_prefix) == (0.0, 19 / 23)


def test_without_references_there_is_agreement_and_no_quality(tmp_path):
    clock = Clock()
    methods = [Fake("large", clock), Fake("bild", clock, write=lambda text: text[:4].upper())]
    summary = evaluate(methods, examples(3, references=False), out=tmp_path, clock=clock, task="chat", resamples=10)
    figures = summary.sets["texts"]
    assert (figures.num_with_references, figures.signatures, figures.methods["bild"].quality) == (0, {}, {})
    assert figures.methods["bild"].same_prefix == 4 / 23


def test_peak_memory_is_measured_once_and_kept(tmp_path):
    asked = []

    def memory_of(method, sources):
        asked.append((method, sources[0]))
        if method == "large":
            raise LoadError("no memory of large")
        return PeakMemory(300_000_000, 100_000_000)

    first = run(tmp_path, memory_of=memory_of, prefix="> ")
    second = run(tmp_path, memory_of=memory_of, prefix="> ")
    source = "> " + examples(1)[0].source
    assert asked == [("large", source), ("bild", source), ("large", source)]
    assert first.peak_memory == second.peak_memory == {"bild": PeakMemory(300_000_000, 100_000_000)}
    assert first.notes == ["no memory of large"]


def test_the_summary_on_disk_is_the_summary(tmp_path):
    summary = run(tmp_path, settings={"dtype": "float32"}, notes=["3 rows skipped"])
    on_disk = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert on_disk == json.loads(json.dumps(summary.to_dict()))
    assert on_disk["definitions"]["rollback_rate"] == "rounds that ended in a rollback / rounds"
    assert on_disk["configuration"]["dtype"] == "float32" and on_disk["notes"] == ["3 rows skipped"]
    assert on_disk["weight_bytes"] == {"large": 12_000_000, "bild": 12_000_000}
    assert {"cpu", "cores", "threads", "versions", "commit", "date"} <= set(on_disk["machine"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "poetry"}, "task is 'poetry'; allowed are translation"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"resamples": 0}, "resamples is 0"),
        ({"seed": -1}, "seed is -1; allowed is 0 or more"),
        ({"baseline": "x"}, "baseline is 'x'; allowed are a"),
    ],
)
def test_bad_options_are_refused_before_anything_is_decoded(options, says):
    clock, log = Clock(), []
    method = Fake("a", clock, log=log)
    with pytest.raises(InputError, match=says):
        evaluate([method], examples(1), clock=clock, **options)
    assert log == [] and method.closed == 1


def test_a_missing_package_is_said_before_anything_is_decoded(monkeypatch):
    from bild.evaluation import run as running

    monkeypatch.setattr(running, "find_spec", lambda name: None if name == "sacrebleu" else object())
    with pytest.raises(InputError, match=r"sacrebleu is not installed; pip install 'bild\[eval\]'"):
        evaluate([Fake("a", Clock())], examples(1))


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["b", "large"], "large"), (["b", "large:dtype=float32"], "large:dtype=float32"), (["b", "small"], "b")],
)
def test_the_default_baseline(names, expected):
    clock = Clock()
    assert evaluate([Fake(name, clock) for name in names], examples(1), clock=clock, resamples=5).baseline == expected


def test_empty_sets_and_a_set_named_all_are_refused():
    with pytest.raises(InputError, match="set 'x' holds no examples"):
        evaluate([Fake("a", Clock())], {"x": []})
    with pytest.raises(InputError, match="a set is named 'all'"):
        evaluate([Fake("a", Clock())], {"all": examples(1), "x": examples(1)})


def test_a_kill_before_the_end_of_a_line_glues_no_two_records(tmp_path):
    """The record is whole but for its line end; what comes next must begin a line of its own."""
    run(tmp_path / "run")
    outputs = tmp_path / "run" / "outputs.jsonl"
    outputs.write_bytes(outputs.read_bytes()[:-1])
    log = []
    run(tmp_path / "run", log=log)
    lines = outputs.read_bytes().split(b"\n")
    assert lines.pop() == b"" and all(isinstance(json.loads(line), dict) for line in lines)
    # The record whose line had no end is decoded again, the others are kept.
    assert len({source for _, source in log}) <= 2
    again = []
    run(tmp_path / "run", log=again)
    assert again == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
@pytest.mark.parametrize("name", ["summary.json", "report.html"])
def test_a_full_disk_is_one_line_whatever_is_written(tmp_path, name):
    run(tmp_path / "run")
    file = tmp_path / "run" / name
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(InputError, match=f"cannot write .*{name}: No space left on device"):
        run(tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_record_on_a_full_disk_is_one_line(tmp_path):
    journal = Journal(["a"], tmp_path / "outputs.jsonl")
    journal.close()
    journal._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(InputError, match="cannot write /dev/full: No space left on device"):
        journal.write(Record("set", "1", "a"))
    with pytest.raises(InputError, match="cannot write /dev/full"):
        journal.close()


DAMAGES = [
    {"text": None}, {"text": 5}, {"set": ["test"]}, {"id": 3}, {"token_ids": "abc"}, {"token_ids": [None]},
    {"token_ids": [-1]}, {"token_ids": [True]}, {"total_s": None}, {"total_s": "x"}, {"total_s": math.nan},
    {"ttft_s": "x"}, {"stats": [1]}, {"stats": {"num_tokens": "x"}}, {"stats": {"other": 1}}, {"counts": 3},
    {"counts": {"a": "x"}}, {"error": 3},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_record_that_cannot_be_computed_with_is_decoded_anew(tmp_path, damage):
    first = run(tmp_path / "run").to_dict()
    outputs = tmp_path / "run" / "outputs.jsonl"
    lines = outputs.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | damage)
    outputs.write_text("".join(f"{line}\n" for line in lines))
    log = []
    again = run(tmp_path / "run", log=log).to_dict()
    assert len({source for _, source in log}) == 1
    assert again["sets"].keys() == first["sets"].keys()
    for name, own in first["sets"]["texts"]["methods"].items():
        assert again["sets"]["texts"]["methods"][name]["quality"] == own["quality"]
    assert len(outputs.read_text().splitlines()) == len(lines)


def test_two_records_of_a_method_on_an_example_are_none(tmp_path):
    """As lines of another run leave them: which are right is not known."""
    run(tmp_path / "run")
    outputs = tmp_path / "run" / "outputs.jsonl"
    lines = outputs.read_text().splitlines()
    other = json.loads(lines[0]) | {"text": "other"}
    # The same line twice is one record.
    outputs.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(other), lines[4]]))
    log = []
    run(tmp_path / "run", log=log)
    assert len({source for _, source in log}) == 1
    records = [json.loads(line) for line in outputs.read_text().splitlines()]
    assert "other" not in {record["text"] for record in records}
    assert len(records) == len(lines)


@pytest.mark.parametrize("damage", ["[" * 100_000, "[1]", '{"large": 3}', "{"])
def test_damaged_files_of_a_run_are_no_traceback(tmp_path, damage):
    run(tmp_path / "run")
    (tmp_path / "run" / "memory.json").write_text(damage)
    with (tmp_path / "run" / "outputs.jsonl").open("a") as outputs:
        outputs.write(damage + "\n")
    log = []
    summary = run(tmp_path / "run", log=log, memory_of=lambda *asked: PeakMemory(1, 1))
    assert log == [] and set(summary.peak_memory) == {"large", "bild"}
    (tmp_path / "run" / "run.json").write_text(damage)
    with pytest.raises(InputError, match=r"run\.json is damaged|other settings"):
        run(tmp_path / "run")
