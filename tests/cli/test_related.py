"""Middle models, rewards, plans and latency, from the command line."""

from __future__ import annotations

import json
import sys

import pytest

from bild import BigLittleDecoder
from bild.cli import main, pair_options
from bild.evaluation import Setup, load_methods, parse_methods

TEXT = "Ein Hund läuft."


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """``run(…) -> (code, stdout, stderr)`` on the bundled networks, loaded once."""

    def load(*, middle=None, middle_window=None, drafter=None, reward=None, **_):
        options = {"middle": middle, "middle_window": 4 if middle_window is None else middle_window}
        options |= {"drafter": drafter, "reward": reward, "policy": bundled.policy}
        networks = bundled.large.network, bundled.small.network
        return BigLittleDecoder(*networks, bundled.tokenizer, small_tokenizer=bundled.tokenizer, **options)

    monkeypatch.setattr(pair_options, "load_decoder", load)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return (int(stopped.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def data(tmp_path, sentences):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"source": text, "target": text}) + "\n" for text in sentences[:2]))
    return file


def test_a_reward_decides_who_writes(run, bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.py").write_text(
        "def good(*_):\n    return 1.0\ndef bad(*_):\n    return float('nan')\ndef broken(*_):\n    return 1 / 0\n"
    )
    for name, side in (("good", "small"), ("bad", "large")):
        code, out, _ = run("generate", "--policy", "reward", "--reward", f"judges:{name}", TEXT)
        assert code == 0 and out == bundled.generate(TEXT, side)[0].text + "\n"
    code, out, err = run("generate", "--policy", "reward", "--reward", "judges:broken", TEXT)
    assert code == 2 and "the reward failed with ZeroDivisionError" in err and err.count("\n") == 1


def test_a_plan_says_what_it_predicts_and_what_it_takes(run, data):
    how = ("--data", data, "--limit", 1, "--json")
    code, out, err = run("plan", *how, "--max-new-tokens", 3, "--middle", "exit:4", "--no-measure")
    assert code == 0 and "reading 1 texts" in err
    *lines, last = out.splitlines()
    found = json.loads(last)
    assert [len(plan["levels"]) for plan in found["plans"]] == [1, 2, 3]
    assert all(plan["predicted_s"] > 0 and plan["measured_s"] is None for plan in found["plans"])
    assert sum("would keep" in line for line in lines) == 3 and lines[-1].endswith("→ large")
    measured = json.loads(run("plan", *how, "--max-new-tokens", 6)[1].splitlines()[-1])["plans"]
    assert len(measured) == 2 and measured[0]["measured_s"] > 0


def test_latency_of_a_sweep_and_of_texts_that_were_written(run, data, tmp_path):
    code, out, _ = run(
        "latency", "--data", data, "--rates", "40,80", "--windows", "0,2,3", "--requests", 2, "--max-new-tokens", 2,
        "--json",
    )  # fmt: skip
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and set(found["windows"]) == {"0", "2", "3"} and {"C1", "C2", "best_window"} <= set(found)
    written = run("generate", "--json", "--max-new-tokens", 3, "-i", data)[1]
    (tmp_path / "runs").write_text(written)
    code, out, _ = run("latency", "--runs", tmp_path / "runs", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["texts"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "--policy", "reward", TEXT), "judges segments by a reward, and there is none"),
        (("generate", "--policy", "exact", "--reward", "a:b", TEXT), "has nothing to judge under this policy"),
        (("generate", "--policy", "reward:delta=x", "--reward", "a:b", TEXT), "delta is 'x'; allowed is a number"),
        (("generate", "--policy", "reward", "--reward", "no.such:fn", TEXT), "reward no.such:fn cannot be imported"),
        (("plan", "--data", "x.jsonl", "--limit", 0), "limit is 0; allowed is 1 or more"),
        (("latency",), "give one of --log, --runs and --data, got none"),
        (("latency", "--data", "x", "--rates", "1"), "allowed are two rates above 0"),
        (("latency", "--data", "x", "--rates", "1,nan"), "allowed are two rates above 0"),
        (("latency", "--data", "x", "--rates", "1,inf"), "allowed are two rates above 0"),
        (("latency", "--data", "x", "--windows", "two"), "windows are 'two'; allowed are whole numbers"),
        (("latency", "--data", "x", "--requests", 1), "requests is 1"),
        (("latency", "--log", "/no/such/log"), "cannot read /no/such/log"),
        (("simulate", "devices", "-i", "x", "--save", "/"), "save is /, which cannot be written"),
        (("simulate", "devices", "-i", "x", "--draft-ms", "inf"), "draft-ms is inf; allowed is 0 or more"),
        (("simulate", "shards", "-i", "x", "--pass-ms", 0, "--token-ms", 0), "are all 0; give one of them above 0"),
    ],
)
def test_wrong_options_are_one_line(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_methods_of_an_evaluation_share_a_middle_model_a_drafter_and_a_reward(bundled):
    asked = {}

    def load(**options):
        asked.update(options)
        return bundled

    setup = Setup(middle="small", middle_window=3, drafter="ngram", reward="judges:good", max_new_tokens=4)
    load_methods(parse_methods("large,exact,pyramid,reward"), setup, load)
    assert {name: asked[name] for name in ("middle", "middle_window", "drafter", "reward")} == {
        "middle": "small", "middle_window": 3, "drafter": "ngram", "reward": "judges:good"
    }  # fmt: skip
    described = setup.describe()
    assert described["middle"]["name"] == "small" and described["drafter"] == "ngram"
    assert not {"middle", "drafter", "reward"} & set(Setup().describe())
