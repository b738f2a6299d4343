"""Every item end to end on tiny pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bild import Policy
from bild.errors import InputError
from bild.evaluation import Example, Setup, measure
from bild.evaluation.own import PolicyMethod
from bild.generation.seeds import digest_of, fold
from bild.reproduction import ALL, ITEMS, Workspace, figure9, items, reproduce
from bild.reproduction.choosing import within
from bild.reproduction.counting import Cost
from bild.reproduction.figure8 import counted
from bild.reproduction.grids import WINDOWS
from bild.reproduction.result import Result, write
from bild.reproduction.workspace import Row
from bild.tuning import CostModel, Point
from bild.tuning.bench import Bench
from tests.reproduction.pairs import LONGEST, inputs, load, load_named

PRICES = CostModel((1e-3, 1e-3, 5e-4, 2e-3, 1e-4))
"""Seconds: of networks as small as these, every pass costs the same, and noise would choose the policies."""
WARM_UP = 4
"""Calls: one text by four methods."""
FIGURES = [name for name in ITEMS if name.startswith("figure")]


@pytest.fixture(scope="module", autouse=True)
def _little_warming_up():
    """The first calls of networks as small as these are as fast as the last, and a third of an item's time."""
    with pytest.MonkeyPatch.context() as patch:
        warm_up = measure._warm_up
        patch.setattr(measure, "_warm_up", lambda methods, examples, prefix: warm_up(methods, examples[:1], prefix))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All items from all inputs, and the lines that were said: ``made(item) -> values``."""
    out = tmp_path_factory.mktemp("made")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "calibrate", lambda bench, file: PRICES)
        reproduce(ALL, inputs(), out, load=load, done=lines.append)

    def values(item: str) -> dict:
        return json.loads((out / f"{item}.json").read_text(encoding="utf-8"))

    values.out, values.lines = out, lines
    return values


def test_every_item_is_written_and_told(made):
    assert [line.split(":")[0] for line in made.lines] == list(ITEMS)
    for item in ITEMS:
        values, text = made(item), (made.out / f"{item}.md").read_text(encoding="utf-8")
        assert (
            values["missing"] == [] and values["machine"]["versions"]["torch"] and values["inputs"]["seeds"] == [1, 2]
        )
        assert values["inputs"]["data"]["test"]["set 0"]["sha256"] in text
        assert text.startswith(f"# {values['title']}") and "nan" not in text
    pictures = [item for item in ITEMS if (made.out / f"{item}.png").exists()]
    assert pictures == FIGURES
    assert all((made.out / f"{item}.png").read_bytes().startswith(b"\x89PNG") for item in pictures)


def test_table1_reports_what_running_gives(made):
    rows = made("table1")["values"]["sets"]["set 0"]
    assert list(rows) == [
        "large", "unaligned small alone", "unaligned, minimal loss", "unaligned, within one point",
        "aligned small alone", "aligned, minimal loss", "aligned, within one point",
    ]  # fmt: skip
    assert rows["large"]["quality"][0] == pytest.approx(100) and rows["unaligned small alone"]["quality"][0] < 90
    workspace = Workspace(inputs(), made.out, load=load)
    for variant in workspace.inputs.variants:
        for label in ("minimal loss", "within one point"):
            row = rows[f"{variant.label}, {label}"]
            policy = Policy.from_dict(row["policy"])
            assert Policy().parse(row["name"]) == policy
            (looked_up,) = workspace.points(variant, "set 0", [policy])
            assert looked_up.quality["set 0"] == pytest.approx(row["quality"][0])
            counts = load_named("large", variant.small).generate(
                [each.source for each in workspace.inputs.test["set 0"]], policy, max_new_tokens=LONGEST
            )
            assert row["counts"]["num_rollbacks"] == sum(result.stats.num_rollbacks for result in counts)
        fast, faster = (rows[f"{variant.label}, {label}"]["dev"] for label in ("minimal loss", "within one point"))
        assert fast["loss"] <= 0.3 and faster["loss"] <= 1 and fast["predicted_speedup"] <= faster["predicted_speedup"]


def test_the_tables_have_the_papers_figures_beside(made):
    for item, figure in (("table1", "40.24 · 1.62×"), ("table3", "39.87 · 1.49×"), ("table4", "24.24 %"),
                         ("table5", "38.27 · 1.80×")):  # fmt: skip
        assert figure in (made.out / f"{item}.md").read_text(encoding="utf-8")


def test_speculative_decoding_is_lossless_and_counted(made):
    rows = made("table3")["values"]["sets"]["set 0"]
    exact = rows["greedy"]["speculative decoding"]
    assert exact["same_tokens"] == 1 and exact["quality"] == rows["greedy"]["large"]["quality"]
    assert len(rows["sampled"]) == 2 + len(WINDOWS) and len(rows["sampled"]["large"]["quality"]) == 2
    windows = {name: one["speedup"] for name, one in rows["sampled"].items() if name.startswith("rejection")}
    assert rows["best_window"] == max(windows, key=windows.get)
    shares = made("table4")["values"]["sets"]["set 0"]["speculative decoding, greedy"]
    assert shares["num_rollbacks"] == exact["counts"]["num_rollbacks"] > 0
    assert shares["fallbacks_per_token"] == shares["num_large_steps"] / shares["num_tokens"] < 1
    assert shares["rollbacks_per_fallback"] == shares["num_rollbacks"] / shares["num_large_steps"]
    assert shares["num_draft_tokens"] * (1 - shares["thrown_away_per_drafted"]) == pytest.approx(
        shares["num_accepted_tokens"]
    )


def test_seeds_are_runs_of_their_own(made):
    rows = made("table5")["values"]["sets"]["set 0"]
    sources = [each.source for each in inputs().test["set 0"]]
    draw = {"do_sample": True, "top_p": 0.8, "max_new_tokens": LONGEST}
    pair = load_named("large", "aligned")
    quality = Workspace(inputs(), made.out, load=load).search(inputs().variants[-1], "set 0").texts.quality
    for seed, found in zip((1, 2), rows["large"]["quality"], strict=True):
        # As an evaluation draws: each text has a seed of its own, whatever was decoded before.
        seeds = [fold(seed, digest_of(source)) for source in sources]
        tokens = [
            pair.generate([source], "large", seed=own, **draw)[0].token_ids
            for own, source in zip(seeds, sources, strict=True)
        ]
        assert found == pytest.approx(quality({at: tuple(ids) for at, ids in enumerate(tokens)})["set 0"])
    assert rows["large"]["quality"][0] != rows["large"]["quality"][1]
    assert len(rows["large"]["quality"]) == 2 and rows["large"]["speedup"] == 1
    assert rows["large"]["mean"] == pytest.approx(sum(rows["large"]["quality"]) / 2) != pytest.approx(100)


def test_the_ablations_are_looked_up_by_their_own_policies(made):
    points = made("figure5")["values"]["sets"]["set 0"]
    members = inputs().test["set 0"]
    workspace = Workspace(inputs(), made.out, load=load)
    texts = workspace.search(workspace.inputs.variants[-1], "set 0").texts
    for curve, policy in (
        ("no rollback", Policy.no_rollback(fallback_threshold=0.5)),
        ("no fallback", Policy.no_fallback(window=4, rollback_threshold=2.0)),
    ):
        run = load_named("large", "aligned").generate([m.source for m in members], policy, max_new_tokens=LONGEST)
        quality = texts.quality({at: tuple(result.token_ids) for at, result in enumerate(run)})["set 0"]
        assert quality in [pytest.approx(point["quality"]) for point in points[curve]]
        (point,) = workspace.points(workspace.inputs.variants[-1], "set 0", [policy])
        assert point.quality["set 0"] == pytest.approx(quality)
    assert len(points["no fallback"]) == 80 and len(points["BiLD"]) == 110


def test_figure8_divides_by_the_large_model(made):
    found = made("figure8")["values"]["sets"]["set 0"]
    large, bild = found["a_text"]["large"], found["a_text"]["bild"]
    assert found["normalised"]["FLOPs"] == pytest.approx(bild["flops"] / large["flops"])
    assert found["normalised"]["memory operations"] * found["normalised"]["arithmetic intensity"] == pytest.approx(
        found["normalised"]["FLOPs"]
    )
    row = made("table1")["values"]["sets"]["set 0"]["aligned, minimal loss"]
    assert found["normalised"]["speedup"] == row["speedup"][0]
    workspace = Workspace(inputs(), made.out, load=load)
    reading, decoding = counted(workspace, workspace.inputs.variants[-1], Policy.from_dict(row["policy"]), "set 0")
    assert isinstance(reading, Cost) and (reading + decoding).moved / 5 == pytest.approx(bild["bytes"])


def test_figure9_shows_the_text_that_is_decoded(made):
    shown = made("figure9")["values"]["sets"]["set 0"]
    row = made("table1")["values"]["sets"]["set 0"]["aligned, minimal loss"]
    assert shown and all(one["large"] != one["small"] for one in shown)
    for one in shown:
        (run,) = load_named("large", "aligned").generate(
            [one["source"]], Policy.from_dict(row["policy"]), max_new_tokens=LONGEST
        )
        kept = "".join(piece["text"] for piece in one["bild"] if piece["kind"] != "rolled_back")
        assert kept.strip() == run.text
    text = (made.out / "figure9.md").read_text(encoding="utf-8")
    struck = sum(piece["kind"] == "rolled_back" for one in shown for piece in one["bild"])
    assert text.count("~~") == 2 * (struck + 1)  # and once in the legend
    assert re.search(r"\*\*w\d+\*\*", text)


def test_figure9_strikes_what_is_rolled_back(tmp_path):
    """A policy that is never unsure: all drafts are read, and most are cut short."""
    workspace = Workspace(inputs(), tmp_path, load=load)
    variant = workspace.inputs.variants[0]
    policy = Policy.bild(fallback_threshold=0.0, rollback_threshold=1.0, verify_end=True)
    shown = figure9.examples(workspace, "set 0", Row("never unsure", variant, policy))
    struck = [piece.text.strip() for one in shown for piece in one.pieces if piece.kind == "rolled_back"]
    assert len(struck) >= len(shown) > 1
    text = "\n".join(map(figure9.markdown, shown))
    assert re.findall(r"~~(.*?)~~", text) == struck


def test_early_exits_are_a_pair_and_calm_is_run(made):
    values = made("figure6")["values"]
    assert list(values["measured"]["set 0"]) == [
        "large", "early exit small alone", "early exit, minimal loss", "early exit, within one point",
    ]  # fmt: skip
    assert values["measured"]["set 0"]["large"]["quality"][0] == pytest.approx(100)
    alone = values["sets"]["set 0"]["exit alone"][0]
    assert alone["quality"] == pytest.approx(values["measured"]["set 0"]["early exit small alone"]["quality"][0])
    calm = made("figure7")["values"]["sets"]["set 0"]["calm"]
    assert len(calm["points"]) == 25 and calm["whole"] == pytest.approx(100)
    assert {one["decay"] for one in calm["points"]} == {0, 1, 2, 4, 8}
    assert all(1 <= one["layers"] <= 3 for one in calm["points"])


def test_a_killed_run_goes_on_and_nothing_is_decoded_twice(tmp_path, monkeypatch):
    """Killed in the middle of Table 3's greedy runs, after two of five texts by four methods."""
    call, calls, limit, done = PolicyMethod.__call__, [], [10**9], []
    given = inputs(aligned=None, early_exit=None, calm=None, seeds=(1,))

    def counting(self, source):
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        calls.append(self.name)
        return call(self, source)

    def say(line: str) -> None:
        if "speculative decoding" in line:
            limit[0] = len(calls) + WARM_UP + 10

    monkeypatch.setattr(PolicyMethod, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        reproduce(ALL, given, tmp_path, load=load, say=say, done=done.append)
    finished = [line.split(":")[0] for line in done]
    assert finished == list(ITEMS)[: list(ITEMS).index("table3")]
    (cut,) = [file for file in (tmp_path / "work").glob("runs-*/outputs.jsonl") if len(lines_of(file)) % 4 == 2]
    kept, limit[0] = lines_of(cut)[:8], 10**9
    calls.clear()
    reproduce(ALL, given, tmp_path, load=load, done=done.append)
    again = dict(line.split(":", 1) for line in done[len(finished) :])
    assert [name for name, line in again.items() if "there already" in line] == finished
    assert lines_of(cut)[:8] == kept and len(lines_of(cut)) == 20
    assert "unaligned, minimal loss" not in calls
    calls.clear()
    reproduce("table3", given, tmp_path, load=load)
    assert calls == []


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("loss", ["table3.md", "empty png", "figure6.png"])
def test_an_item_of_which_a_file_is_gone_is_not_there(tmp_path, loss):
    about = {"inputs": {"data": {}, "runtime": "eager"}, "versions": {}}
    name = "table3" if loss.startswith("table") else "figure6"
    draw = None if name == "table3" else (lambda figure: figure.subplots())
    write(Result("title", ["text"], {}, draw), name, tmp_path, about)
    assert items._is_there(name, tmp_path, about)
    if loss.startswith("empty"):
        (tmp_path / "figure6.png").write_bytes(b"")
    else:
        (tmp_path / loss).unlink()
    assert not items._is_there(name, tmp_path, about)


def test_another_exit_is_another_input():
    assert inputs(early_exit="large:1").describe() == inputs(early_exit="large:1").describe()
    assert inputs(early_exit="large:1").describe() != inputs(early_exit="large:2").describe()


@pytest.mark.parametrize(
    ("seeds", "says"), [((1 << 70,), "allowed are whole numbers of 64 bits"), ((1, 2, 1), "one is there twice")]
)
def test_seeds_that_decide_nothing_are_refused(seeds, says):
    with pytest.raises(InputError, match=says):
        inputs(seeds=seeds)


def test_other_inputs_never_meet_the_files_of_these(tmp_path):
    few = {"aligned": None, "early_exit": None, "calm": None}
    reproduce("figure10", inputs(**few), tmp_path, load=load)
    first = json.loads((tmp_path / "figure10.json").read_text(encoding="utf-8"))
    reproduce("figure10", inputs(**few, prefix="w5 w6 "), tmp_path, load=load)
    second = json.loads((tmp_path / "figure10.json").read_text(encoding="utf-8"))
    assert first["values"] != second["values"] and second["inputs"]["prefix"] == "w5 w6 "
    reproduce("figure10", inputs(**few), tmp_path, load=load)
    assert json.loads((tmp_path / "figure10.json").read_text(encoding="utf-8"))["values"] == first["values"]
    reproduce("figure10", inputs(**few), tmp_path, load=load, fresh=True)
    assert len([*(tmp_path / "work").glob("traces-*")]) == 1


def test_another_language_is_another_input(tmp_path):
    one, other = (
        Workspace(inputs(setup=Setup(large="large", small="unaligned", tgt_lang=language)), tmp_path)
        for language in ("fr", "de")
    )
    assert one.inputs.describe() != other.inputs.describe()
    assert one._folder("runs", {}) != other._folder("runs", {})


def test_what_is_not_given_is_said_in_a_line(tmp_path):
    done = []
    given = inputs(aligned=None, early_exit=None, calm=None)
    for item in ("figure4", "figure6", "figure7"):
        reproduce(item, given, tmp_path, load=load, done=done.append)
    assert "not here: the aligned curve (--aligned SMALL is not given)" in done[0]
    assert "--exit-model FOLDER:LAYERS is not given" in done[1] and "--calm-model" in done[2]
    assert not (tmp_path / "figure6.png").exists()
    assert "Not here: the whole figure" in (tmp_path / "figure7.md").read_text(encoding="utf-8")


def test_without_dev_only_what_chooses_nothing_is_computed(tmp_path):
    for item in ("table1", "table3", "table4", "table5", "figure8", "figure9"):
        with pytest.raises(InputError, match=f"{item} chooses its policies on dev data; give one --dev"):
            reproduce(item, inputs(dev={}), tmp_path, load=load)
    reproduce("figure4", inputs(dev={}), tmp_path, load=load)
    assert json.loads((tmp_path / "figure4.json").read_text())["values"]["measured"] == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test": {"a": [Example("1", "w3")]}, "dev": {}}, "a: example 1 has no reference"),
        ({"test": {"a": []}, "dev": {}}, "set 'a' holds no examples"),
        ({"dev": {"other": []}}, "dev sets are given for other; give one for each of set 0"),
        ({"metric": "comet"}, "metric is 'comet'; allowed are bleu"),
        ({"seeds": ()}, "there are no seeds"),
    ],
)
def test_bad_inputs_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        inputs(**options)


def test_bad_names_and_places_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"item is 'table2'; allowed are table1, .*figure10.*, all"):
        reproduce("table2", inputs(), tmp_path, load=load)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        reproduce("figure4", inputs(), tmp_path / "file", load=load)
    with pytest.raises(InputError, match="write FOLDER:LAYERS"):
        reproduce("figure6", inputs(early_exit="large"), tmp_path, load=load)


def test_the_fastest_within_a_budget_else_the_nearest():
    points = [Point(Policy(), {"a": 9 - loss}, {"a": loss}, seconds, 1 / seconds)
              for loss, seconds in ((0.1, 4), (0.3, 3), (0.9, 2), (2.0, 1))]  # fmt: skip
    assert [within(points, budget).seconds for budget in (0.0, 0.3, 1.0, 5.0)] == [4, 3, 2, 1]
