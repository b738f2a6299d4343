"""What is served as plain values: every option reaches it, and what is wrong is said before anything is loaded."""

from __future__ import annotations

import importlib.util
import pickle
from inspect import signature

import pytest

from bild.cli import main
from bild.decoding import Goodput
from bild.errors import InputError
from bild.serving import plan as module
from bild.serving.plan import plan
from bild.serving.settings import Keys, Languages

HAS_RAY = importlib.util.find_spec("ray") is not None


def test_every_option_reaches_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.delenv(module.KEY, raising=False)
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    made = plan(
        pair="my/pair", dtype="int8", runtime="static", drafter="ngram", device="cpu", trust_remote_code=True,
        middle="small", middle_window=2, reward="rules:good",
        src_lang="de", tgt_lang="en", max_rows=3, max_cells=99, queue=5, queue_tokens=77, pace="goodput", timeout=9,
        prefix_tokens=55,
        api_key_file=str(keys), key_requests=2, key_rate=30, cors_origin=["https://a"], translate=["de:en=x "],
        metrics_prefix="vllm", lenient=True,
    )  # fmt: skip
    assert made.models == {
        "pair": "my/pair", "large": None, "small": None, "drafter": "ngram", "dtype": "int8", "device": "cpu",
        "runtime": "static", "trust_remote_code": True, "middle": "small", "middle_window": 2, "reward": "rules:good",
    }  # fmt: skip
    limits, settings = made.limits, made.settings
    assert (limits.rows, limits.cells, limits.queue, limits.queue_tokens, limits.prefix_tokens) == (3, 99, 5, 77, 55)
    assert made.languages == ("de", "en") and settings.languages == (Languages("de", "en", "x "),)
    assert (settings.model, settings.timeout_s, settings.cors) == ("pair", 9, ("https://a",))
    assert (settings.key_requests, settings.key_rate, settings.lenient) == (2, 30, True)
    assert settings.keys.allow("one") and settings.metrics_prefix == "vllm"
    # It travels to other processes, and no key travels along.
    sent = pickle.dumps(made)
    assert pickle.loads(sent) == made and b"one" not in sent
    assert plan().settings.languages == (Languages("de", "en"),) and plan().settings.model == "de-en"
    assert plan(large="t5/bild.json").settings.model == "t5" and plan(large="a/b").settings.languages == ()


def test_a_plan_makes_the_service(pair):
    service = plan(pace="goodput", max_rows=2).service(pair)
    assert isinstance(service.engine.pace, Goodput) and service.engine.limits.rows == 2
    assert service.decoder is pair


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pace": "quick"}, "pace is 'quick'; allowed are fixed"),
        ({"timeout": 0}, "timeout is 0; allowed is more than 0"),
        ({"queue_tokens": 0}, "queue_tokens is 0; allowed is 1 or more"),
        ({"prefix_tokens": -1}, "prefix_tokens is -1; allowed is 0 or more"),
        ({"key_rate": 3}, "there are none; give keys"),
        ({"translate": ["de"]}, "write SOURCE:TARGET"),
        ({"max_rows": 0}, "max_rows is 0; allowed is 1 or more"),
        ({"max_cells": 0}, "max_cells is 0; allowed is 1 or more"),
        ({"metrics_prefix": "1 x"}, "metrics_prefix is '1 x'; allowed are letters, digits and _"),
        ({"metrics_prefix": ""}, "metrics_prefix is ''"),
        ({"model_name": " "}, "model_name is empty"),
        ({"cors_origin": ["https://a.org", ""]}, "a cors_origin is empty"),
    ],
)
def test_what_is_wrong_is_said(options, says, monkeypatch):
    monkeypatch.delenv(module.KEY, raising=False)
    with pytest.raises(InputError, match=says):
        plan(**options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replicas", "2"], "replicas are started by Ray; give --ray"),
        (["--drain", "-1"], "drain is -1; allowed is 0 or more"),
        (["--host", ""], "host is empty; give an address or a name"),
        (["--large", ""], "large is empty; name a folder, a file or a hub name"),
        (["--pair", ""], "pair is empty"),
        (["--pace", "table:0=1"], "allowed are rows from 1"),
        (["--key-requests", "2"], "there are none; give keys"),
        (
            ["--ray", "--port", "0"],
            "name it with --port" if importlib.util.find_spec("ray") else "pip install 'bild[ray]'",
        ),
    ],
)
def test_the_command_line_says_so_too_and_loads_nothing(arguments, says, monkeypatch, capsys):
    monkeypatch.delenv(module.KEY, raising=False)
    monkeypatch.setattr("sys.argv", ["bild", "serve", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(module.KEY, "secret")
    assert plan().settings.keys == Keys.of(["secret"])
    monkeypatch.setenv(module.KEY, "")
    with pytest.raises(InputError, match="is empty; give it a key, or unset it"):
        plan()


def test_all_options_are_known_to_the_command_line():
    from bild.cli.serve import serve

    assert set(signature(plan).parameters) <= set(signature(serve).parameters)
