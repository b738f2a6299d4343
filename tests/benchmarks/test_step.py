from __future__ import annotations

import json
import sys

import machine
import pytest
import step
import step_report
import timing
import torch

import bild.models
import docs
from bild.errors import InputError, LoadError
from bild.models import resolve_dtype
from tests.networks import build

BANDWIDTH = {"1048576": {"sum": 60.0, "best": 60.0}, "1073741824": {"sum": 20.0, "dot": 30.0, "best": 30.0}}


def times(*ms):
    return {str(q): {"ms": each, "p10_ms": each - 1, "p90_ms": each + 1, "rounds": 30} for q, each in zip((1, 6), ms)}  # noqa: B905


def entry(**changes):
    facts = {
        "cpu": "CPU of 1999",
        "cpu_model": "X 6 1",
        "flags": ["avx2"],
        "threads": 2,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "commit": "abc+",
        "date": "2030-01-02T03:04",
    }
    measured = {
        "machine": facts,
        "bandwidth": BANDWIDTH,
        "bytes": {"bf16": {"layers": 250_000_000, "head": 49_000_000, "cache": 1_000_000}},
        "floor_ms": {"bf16": 10.0},
        "lengths": [1, 6],
        "runs": {"eager-bf16": times(40, 44), "static-bf16": times(20, 25)},
    }
    return measured | changes


class Sleepless:
    """Says what it was asked."""

    def __init__(self):
        self.asked = []

    def extend(self, tokens, last):
        self.asked.append((len(tokens[0]), last))

    def truncate(self, lengths):
        self.asked.append(lengths)


def test_a_round_forgets_what_it_read_and_scores_every_token():
    scorer = Sleepless()
    taken = timing.timed_round(scorer, [1, 6], prefix=20)
    assert list(taken) == [1, 6]
    assert scorer.asked == [(1, 1), [20]] * 3 + [(6, 6), [20]]


def test_rounds_rotate_and_are_counted():
    order = []

    class Named(Sleepless):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def extend(self, tokens, last):
            order.append(f"{self.name}{len(tokens[0])}")

    result = timing.interleave({name: Named(name) for name in "ab"}, [1, 6], prefix=2, rounds=3, seconds=0)
    turns = [" ".join(order[start : start + 4]) for start in range(0, len(order), 4)]
    assert turns == ["a1 a1 a1 a6", "b1 b1 b1 b6", "b6 b6 b6 b1", "a6 a6 a6 a1", "a1 a1 a1 a6", "b1 b1 b1 b6"]
    assert result["a"]["1"]["rounds"] == result["b"]["6"]["rounds"] == 3


def test_times_are_median_and_tenths_in_milliseconds():
    told = timing.describe_times([0.001 * ms for ms in (11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)])
    assert told == {"ms": 6.0, "p10_ms": 2.0, "p90_ms": 10.0, "rounds": 11}
    assert timing.describe_times([0.002])["p90_ms"] == 2.0


def test_the_floor_divides_bytes_by_the_bandwidth_of_a_buffer_that_the_step_could_fill():
    assert step.floor_ms({"layers": 1_990_000_000, "head": 10_000_000}, BANDWIDTH) == pytest.approx(2000 / 30)
    assert step.floor_ms({"layers": 1_000_000_000}, BANDWIDTH) == pytest.approx(1000 / 60)
    assert step.floor_ms({"layers": 600_000}, BANDWIDTH) == pytest.approx(0.01)
    rising = {"1048576": {"best": 10.0}, "1073741824": {"best": 30.0}}
    assert step.floor_ms({"layers": 3_000_000}, rising) == pytest.approx(0.1)


def test_bandwidth_is_the_best_kernels():
    [(size, kernels)] = machine.read_bandwidth(sizes=(1 << 20,), rounds=3).items()
    best = kernels.pop("best")
    assert size == "1048576"
    assert best == max(kernels.values())
    assert 0.1 < best < 10_000


def test_machine_names_are_file_names():
    def name(cpu: str) -> str:
        return machine.slug({"cpu": cpu, "cpu_model": "AuthenticAMD 25 17"})

    assert name("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz") == "intel-xeon-e5-2690-v4"
    assert name("AMD EPYC 9555P 64-Core Processor") == "amd-epyc-9555p-64-core"
    assert name("AMD EPYC") == "amd-epyc-25-17"


def test_summary_holds_what_the_last_line_promises():
    assert step_report.summary({"t5-large": entry()}) == {
        "t5-large": {"eager-bf16": {"1": 40, "6": 44}, "static-bf16": {"1": 20, "6": 25}, "floor-bf16": 10.0}
    }


def test_tables_hold_speedups_and_shares_of_the_floor():
    text = step_report.plain({"t5-large": entry()})
    assert "static-bf16 / eager-bf16: q=1 ×2.00  q=6 ×1.76" in text
    shares = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.endswith("%")}
    assert shares == {"eager-bf16": "25%", "static-bf16": "50%"}
    assert "static-bf16  20.00 [19.00–21.00]" in text
    page = step_report.render({"t5-large": entry()}, "step.svg")
    assert "| t5-large | floor-bf16 | 10.00 (300 MB) |" in page
    assert "| t5-large | static-bf16 / eager-bf16 | 2.00 | 1.76 |" in page
    assert "t5-large 30.0" in page


def test_plots_are_the_same_for_the_same_numbers(tmp_path):
    drawn = []
    for name in ("a.svg", "b.svg"):
        step_report.plot({"t5-small": entry(), "t5-large": entry()}, tmp_path / name)
        drawn.append((tmp_path / name).read_text(encoding="utf-8"))
    assert drawn[0] == drawn[1]
    assert "<svg" in drawn[0]


def test_measuring_a_tiny_network_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "build", lambda shape, dtype: build("t5", dtype=dtype, vocab_size=320))
    monkeypatch.setattr(machine, "read_bandwidth", lambda: {"1048576": {"best": 0.001}})
    command = ["step", "--runs", "eager-fp32", "eager-bf16", "--lengths", "1", "3", "--rounds", "2", "--seconds", "0"]
    arguments = [*command, "--out", str(tmp_path), "--shapes"]
    for shape in ("t5-large", "t5-small"):
        monkeypatch.setattr(sys, "argv", [*arguments, shape])
        assert step.run(step.main) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(printed) == ["t5-small", "t5-large"]
    assert list(printed["t5-large"]) == ["eager-fp32", "eager-bf16", "floor-fp32", "floor-bf16"]
    assert all(ms > 0 for ms in printed["t5-small"]["eager-bf16"].values())
    assert printed["t5-small"]["floor-fp32"] == pytest.approx(2 * printed["t5-small"]["floor-bf16"], rel=0.05)
    monkeypatch.setattr(step, "measure", lambda *_: pytest.fail("measured again"))
    for again in (["--resume"], ["--table"]):
        monkeypatch.setattr(sys, "argv", [*arguments, "t5-small", *again])
        assert step.run(step.main) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == printed


@pytest.mark.parametrize(
    "changes, runs, lengths, done",
    [
        ({}, ["eager-bf16"], [6], True),
        ({}, ["eager-fp32"], [6], False),
        ({}, ["eager-bf16"], [2], False),
        ({"machine": {"commit": "other"}}, ["eager-bf16"], [6], False),
    ],
)
def test_a_shape_is_done_if_commit_runs_and_lengths_are(monkeypatch, changes, runs, lengths, done):
    monkeypatch.setattr(machine, "describe", lambda: {"commit": "abc"})
    assert step.is_done(entry(**changes), runs, lengths) is done
    assert not step.is_done(None, runs, lengths)


def test_nothing_measured_and_damaged_files_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step", "--table", "--out", str(tmp_path)])
    assert step.run(step.main) == 2
    assert capsys.readouterr().err.startswith("error: nothing is measured on this machine yet")
    damaged = tmp_path / "step.json"
    damaged.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="holds no results"):
        step.load(damaged)


def test_a_section_of_a_page_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- step:begin -->\nold\n<!-- step:end -->\nB\n", encoding="utf-8")
    docs.replace_section(page, "step", "new\n")
    assert page.read_text(encoding="utf-8") == "# A\n<!-- step:begin -->\nnew\n<!-- step:end -->\nB\n"
    with pytest.raises(InputError, match="peers:begin"):
        docs.replace_section(page, "peers", "new")
    with pytest.raises(InputError, match="no such page"):
        docs.replace_section(tmp_path / "none.md", "step", "new")


def test_a_run_chooses_format_and_runtime(monkeypatch):
    quantised, started = [], []

    class Static:
        is_compiled = True

        def __init__(self, network, progress):
            self.network = network

        def start(self, sources):
            started.append((self.network.dtype, sources))
            return Reader()

    class Reader:
        def extend(self, tokens):
            started.append(tokens)

    monkeypatch.setattr(step, "round_weights", lambda network, kind: quantised.append(kind) or network)
    monkeypatch.setattr(bild.models, "CompiledModel", Static, raising=False)
    monkeypatch.setattr(step, "build", lambda shape, dtype: build("t5", dtype=dtype, vocab_size=320))
    for name, dtype in (("static-bf16", torch.bfloat16), ("static-int8", resolve_dtype("auto"))):
        step.RUNS[name].start(step.RUNS[name].prepare("t5-small"))
        assert started[-2:] == [(dtype, [step.SOURCE]), [step.PREFIX]]
    assert quantised == [None, "int8"]
    Static.is_compiled = False
    with pytest.raises(LoadError, match="cannot be compiled"):
        step.RUNS["static-bf16"].start(build("t5"))
    run = step.RUNS["eager-fp32"]
    scorer = run.start(run.prepare("t5-small"))
    assert isinstance(scorer, bild.models.EagerScorer)
    assert scorer.lengths == [20]
    assert [run.weights for run in step.RUNS.values()] == ["fp32", "bf16", "fp32", "bf16", "int8", "int4"]
