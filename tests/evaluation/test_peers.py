from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bild.errors import InputError, LoadError
from bild.evaluation.method import Method, MethodSpec, PeerContext
from bild.evaluation.peers import PEERS, engines, environment, in_process
from bild.evaluation.peers.worker import WorkerPeer
from tests.networks import build, word_tokenizer

WORDS = "w5 w6 w7 w8"
CONTEXT = PeerContext("large", "small", max_new_tokens=16, device="cpu", threads=1)

# --- a worker that is only the protocol ------------------------------------------------------------------------------

FAKE = """
import json, sys, os
print(json.dumps({"ready": True, "weight_bytes": 12, "versions": {"engine": "1.2"}}), flush=True)
for line in sys.stdin:
    source = json.loads(line)["source"]
    if source == "die":
        print("Traceback", file=sys.stderr)
        sys.exit("engine: out of memory")
    if source == "bad":
        print(json.dumps({"error": "ValueError: too long"}), flush=True)
        continue
    answer = {"text": source.upper(), "token_ids": [len(source), 1], "total_s": 0.25, "ttft_s": None}
    print(json.dumps(answer), flush=True)
open(sys.argv[1], "w").write("ended")
"""


@pytest.fixture
def fake(tmp_path):
    worker = start(tmp_path, FAKE)
    yield worker
    worker.close()


def start(folder: Path, code: str) -> WorkerPeer:
    script = folder / "worker.py"
    script.write_text(code, encoding="utf-8")
    return WorkerPeer("engine:x=1", [sys.executable, str(script), str(folder / "ended")], settle_s=0)


def test_a_worker_answers_line_by_line_and_times_itself(fake):
    assert isinstance(fake, Method)
    assert (fake.name, fake.weight_bytes, fake.details) == ("engine:x=1", 12, {"versions": {"engine": "1.2"}})
    first, second = fake("grüße"), fake("two\nlines")
    assert (first.text, first.token_ids, first.total_s, first.ttft_s) == ("GRÜSSE", [5, 1], 0.25, None)
    assert second.text == "TWO\nLINES"


def test_one_text_a_worker_cannot_decode_does_not_end_it(fake):
    with pytest.raises(InputError, match=r"^ValueError: too long$"):
        fake("bad")
    assert fake("good").text == "GOOD"


def test_the_death_of_a_worker_is_an_error_that_says_why_every_time(fake):
    for source in ("die", "more"):
        with pytest.raises(LoadError, match=r"process ended with 1 \(engine: out of memory\)$"):
            fake(source)


def test_closing_lets_the_worker_end_by_itself(fake, tmp_path):
    fake.close()
    fake.close()
    assert (tmp_path / "ended").read_text() == "ended"
    with pytest.raises(LoadError, match="is closed"):
        fake("good")


def test_a_worker_that_cannot_load_is_a_load_error(tmp_path):
    with pytest.raises(LoadError, match=r"cannot load the model \(RuntimeError: no int8 here\)$"):
        start(tmp_path, """print('{"error": "RuntimeError: no int8 here"}')""")
    with pytest.raises(LoadError, match=r"ended with 1 \(ModuleNotFoundError: No module named 'no_such_engine'\)$"):
        start(tmp_path, "import no_such_engine")
    with pytest.raises(LoadError, match="cannot be started"):
        WorkerPeer("engine", [str(tmp_path / "no_python")])


# --- the loop all workers share --------------------------------------------------------------------------------------

LOOP = """
import sys
sys.path.insert(0, {workers!r})
from worker_loop import main

def convert(settings):
    open(settings["model"] + "/converted", "w").write(settings["dtype"])

def load(settings, tokenizer):
    print("a library that prints on loading")
    def decode(encoding):
        if not encoding.ids:
            raise ValueError("nothing to read")
        return [id + settings["threads"] for id in encoding.ids] + [1]
    return decode, 7

main(convert, load, ("tokenizers",))
"""


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a tokenizer whose words are their ids."""
    folder = tmp_path / "checkpoint"
    word_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"is_encoder_decoder": True}), encoding="utf-8")
    return folder


def loop_command(folder: Path, task: str, **settings: object) -> list[str]:
    script = folder / "run_fake.py"
    script.write_text(LOOP.format(workers=str(engines.WORKERS)), encoding="utf-8")
    return [sys.executable, str(script), task, json.dumps(settings)]


def test_the_worker_loop_goes_from_text_to_text(tmp_path, checkpoint):
    settings = {"checkpoint": str(checkpoint), "model": str(tmp_path), "dtype": "int8", "threads": 2}
    subprocess.run(loop_command(tmp_path, "convert", **settings), check=True)
    assert (tmp_path / "converted").read_text() == "int8"
    worker = WorkerPeer("fake", loop_command(tmp_path, "serve", **settings), settle_s=0)
    output = worker("w5 w7")
    assert (output.token_ids, output.text) == ([7, 9, 1], "w7 w9")
    assert 0 < output.total_s < 1
    assert worker.weight_bytes == 7 and set(worker.details["versions"]) == {"tokenizers"}
    with pytest.raises(InputError, match="ValueError: nothing to read"):
        worker("")
    worker.close()


def test_workers_know_nothing_of_bild():
    sources = [file.read_text(encoding="utf-8") for file in engines.WORKERS.glob("*.py")]
    assert len(sources) == 1 + len(engines.ENGINES)
    assert not any("import bild" in source or "from bild" in source for source in sources)


# --- environments ----------------------------------------------------------------------------------------------------


@pytest.fixture
def installs(tmp_path, monkeypatch):
    """Instead of an environment a script that writes down what pip is asked, and fails if it is told to."""
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "cache"))
    calls = tmp_path / "calls"

    def create(place, with_pip):
        (Path(place) / "bin").mkdir()
        python = Path(place) / "bin" / "python"
        python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nif [ -e {tmp_path}/broken ]; then '
                          "echo 'ERROR: No matching distribution found for torch==9' >&2; exit 1; fi\n")  # fmt: skip
        python.chmod(0o755)

    monkeypatch.setattr(environment.venv, "create", create)
    return calls


def test_an_environment_is_made_once(installs, capsys):
    python = environment.prepare_environment("ctranslate2")
    assert python.is_file() and python.is_relative_to(environment.cache_folder())
    first, second = installs.read_text().splitlines()
    assert first.endswith("ctranslate2.txt torch") and " -c " in first
    assert "--no-deps -r" in second and second.endswith("ctranslate2.txt")
    assert environment.prepare_environment("ctranslate2") == python
    assert len(installs.read_text().splitlines()) == 2
    assert capsys.readouterr().out == ""


def test_a_failed_installation_says_why_and_leaves_nothing(installs, tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(LoadError, match=r"cannot be installed \(ERROR: No matching distribution found for torch==9\)$"):
        environment.prepare_environment("onnxruntime")
    assert list((environment.cache_folder() / "environments").iterdir()) == []


def test_every_engine_has_pinned_requirements_with_torch():
    for engine in engines.ENGINES:
        lines = (environment.REQUIREMENTS / f"{engine}.txt").read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all("==" in line and "+" not in line for line in pins), engine
        assert any(line.startswith("torch==") for line in pins), engine


def test_what_an_engine_cannot_run_is_refused_before_anything_is_installed(installs, checkpoint):
    def load(text: str, **context: object) -> None:
        spec = MethodSpec.parse(text)
        PEERS[spec.name](spec, PeerContext(**{"large": str(checkpoint), "small": "", "max_new_tokens": 4,
                                              "device": "cpu", "threads": 1, **context}))  # fmt: skip

    with pytest.raises(LoadError, match="runs on the CPU only here, and the device is cuda"):
        load("openvino", device="cuda")
    with pytest.raises(InputError, match="unknown option beams; allowed are dtype"):
        load("ctranslate2:beams=4")
    with pytest.raises(InputError, match="dtype is 'bfloat16'; allowed is float32, int8"):
        load("onnxruntime:dtype=bfloat16")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"has no tokenizer\.json"):
        load("onnxruntime")
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LoadError, match="encoder-decoder checkpoints only"):
        load("onnxruntime")
    assert not installs.exists()


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(installs, tmp_path, checkpoint, monkeypatch):
    converted = []
    monkeypatch.setattr(engines, "_convert", lambda command, threads: converted.append(json.loads(command[3])))
    asked = {"checkpoint": str(checkpoint), "dtype": "float32", "threads": 2}
    folders = [engines._converted("openvino", Path("python"), checkpoint, asked) for _ in range(2)]
    assert folders[0] == folders[1] and folders[0].is_dir() and len(converted) == 1
    assert converted[0]["dtype"] == "float32"
    (checkpoint / "config.json").write_text('{"is_encoder_decoder": true, "d_model": 8}', encoding="utf-8")
    assert engines._converted("openvino", Path("python"), checkpoint, asked) != folders[0]
    assert len(converted) == 2


def test_a_failed_conversion_says_why():
    command = [sys.executable, "-c", "raise ValueError('no such architecture')"]
    with pytest.raises(LoadError, match=r"cannot be converted \(ValueError: no such architecture\)$"):
        engines._convert(command, 1)


# --- transformers, in this process -----------------------------------------------------------------------------------


@pytest.fixture
def networks(monkeypatch):
    """A large and a small random T5 instead of checkpoints; transformers cannot generate with more decoder layers."""
    made = {name: build("t5", seed=seed, dtype=torch.float32, num_decoder_layers=2)
            for name, seed in (("large", 1), ("small", 2))}  # fmt: skip
    monkeypatch.setattr(in_process, "_network", lambda name, dtype, device: made[name].to(dtype))
    monkeypatch.setattr(in_process, "load_tokenizer", lambda name: word_tokenizer())
    return made


def load(text: str) -> in_process.TransformersPeer:
    spec = MethodSpec.parse(text)
    return PEERS[spec.name](spec, CONTEXT)


def large_alone(networks) -> list[int]:
    ids = torch.tensor([word_tokenizer()(WORDS).input_ids])
    return networks["large"].generate(ids, do_sample=False, max_new_tokens=16)[0, 1:].tolist()


@pytest.fixture
def drafts(networks, monkeypatch):
    """(tokens asked for, tokens drafted, confidence threshold) of every call of the small model."""
    calls = []
    small = networks["small"]
    generate = small.generate

    def spy(*args, **options):
        output = generate(*args, **options)
        threshold = options["generation_config"].assistant_confidence_threshold
        calls.append((options["max_new_tokens"], len(output.scores), threshold))
        return output

    monkeypatch.setattr(small, "generate", spy)
    return calls


def test_greedy_is_the_large_models_own_text(networks):
    peer = load("transformers-greedy:dtype=float32")
    expected = large_alone(networks)
    output = peer(WORDS)
    assert output.token_ids == expected and 2 < len(expected) <= 16
    assert output.text == word_tokenizer().decode(expected, skip_special_tokens=True)
    assert peer.weight_bytes == sum(4 * weight.numel() for weight in networks["large"].parameters())
    assert isinstance(peer, Method) and output.total_s is None and output.stats is None


def test_the_dtype_reaches_the_network(networks):
    assert load("transformers-greedy:dtype=bfloat16").details["dtype"] == "torch.bfloat16"
    assert networks["large"].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Passing `generation_config`")
def test_assistance_changes_the_work_but_not_the_text(networks, drafts):
    expected = large_alone(networks)
    assert load("transformers-assisted:dtype=float32")(WORDS).token_ids == expected
    # transformers drafts at most what is left: one less than the 16 tokens allowed.
    assert drafts[0][0] == 15 and drafts[0][2] == 0.4
    drafts.clear()
    options = "num_assistant_tokens=3:assistant_confidence_threshold=0"
    assert load(f"transformers-assisted:dtype=float32:{options}")(WORDS).token_ids == expected
    assert {asked for asked, _, _ in drafts} <= {1, 2, 3} and drafts[0][:2] == (3, 3)
    assert {threshold for _, _, threshold in drafts} == {0.0}


def test_the_confidence_threshold_ends_drafts(networks, drafts):
    load("transformers-assisted:dtype=float32:num_assistant_tokens=5:assistant_confidence_threshold=1")(WORDS)
    assert {drafted for _, drafted, _ in drafts} == {1} and drafts[0][0] == 5


def test_rows_that_share_the_small_model_keep_their_own_settings(networks, drafts):
    own = networks["small"].generation_config.num_assistant_tokens
    heuristic = load("transformers-assisted:dtype=float32:num_assistant_tokens=4:schedule=heuristic")
    constant = load("transformers-assisted:dtype=float32:num_assistant_tokens=4:schedule=constant")
    first = []
    for peer in (heuristic, constant, heuristic, constant):
        drafts.clear()
        peer(WORDS)
        first.append(drafts[0][0])
    # The heuristic takes what it learnt from one text to the next, as in transformers; the constant row does not.
    assert first[0] == first[1] == first[3] == 4 and first[2] != 4
    assert in_process.assistant_config(networks["large"], {}).num_assistant_tokens == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transformers-greedy:num_assistant_tokens=3", "unknown option num_assistant_tokens; allowed are dtype"),
        ("transformers-greedy:dtype=int8", "dtype is 'int8'; allowed is float32, bfloat16, float16"),
        ("transformers-assisted:num_assistant_tokens=0", "is '0'; allowed is a whole number from 1 on"),
        ("transformers-assisted:num_assistant_tokens=2.5", "is '2.5'; allowed is a whole number from 1 on"),
        ("transformers-assisted:assistant_confidence_threshold=1.1", "allowed is a number from 0 to 1"),
        ("transformers-assisted:assistant_confidence_threshold=nan", "allowed is a number from 0 to 1"),
        ("transformers-assisted:schedule=linear", "allowed is constant, heuristic, heuristic_transient"),
    ],
)
def test_options_a_peer_does_not_have_are_refused(networks, text, message):
    with pytest.raises(InputError, match=message):
        load(text)


def test_checkpoints_are_loaded_as_transformers_loads_them_and_shared():
    from bild.generation.pair import bundled_pair

    pair = bundled_pair()
    context = PeerContext(str(pair / "large"), str(pair / "small"), max_new_tokens=8, device="cpu", threads=1)
    specs = [MethodSpec.parse(f"transformers-assisted:dtype=float32:num_assistant_tokens={n}") for n in (2, 3)]
    one, two = (PEERS[spec.name](spec, context) for spec in specs)
    assert one._large is two._large and one._small is two._small
    block = one._large.get_decoder().block[0].layer[0].SelfAttention
    assert "compute_bias" not in vars(block), "a speed-up of ours would make the peer faster than its users see it"
    assert one("Wie spät ist es?").text == two("Wie spät ist es?").text == "What time is it?"


def test_a_checkpoint_transformers_cannot_load_is_a_row_that_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}', encoding="utf-8")
    context = PeerContext(str(tmp_path), str(tmp_path), max_new_tokens=8, device="cpu", threads=1)
    with pytest.raises(LoadError, match="transformers cannot load it"):
        PEERS["transformers-greedy"](MethodSpec.parse("transformers-greedy"), context)


# --- the driver: benchmarks/peers.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver():
    return importlib.import_module("peers")


def summary(*sets: dict[str, tuple[float, float]]) -> SimpleNamespace:
    """Sets of (seconds, BLEU) by method."""
    figures = [
        {name: SimpleNamespace(total_s=seconds, quality={"bleu": SimpleNamespace(value=bleu)})
         for name, (seconds, bleu) in each.items()}
        for each in sets
    ]  # fmt: skip
    named = {str(index): SimpleNamespace(methods=methods) for index, methods in enumerate(figures)}
    return SimpleNamespace(sets=named, methods=list(sets[0]))


def test_our_row_is_the_fastest_that_keeps_its_quality_on_every_set(driver):
    one = {"large": (9.0, 30.0), "exact": (1.0, 30.0), "bild": (5.0, 29.71), "bild:runtime=static": (3.0, 33.0)}
    two = {"large": (9.0, 20.0), "exact": (1.0, 20.0), "bild": (5.0, 25.0), "bild:runtime=static": (3.0, 19.69)}
    assert driver.best_row(summary(one, two)) == "bild"
    assert driver.best_row(summary(one, one)) == "bild:runtime=static"
    assert driver.best_row(summary(two | {"bild": (5.0, 19.0)})) is None


def test_a_peer_counts_at_its_fastest_setting(driver):
    seconds = {"large": 9.0, "large:runtime=static": 4.0, "bild": 1.0, "exact": 1.0, "openvino": 3.0,
               "openvino:dtype=int8": 2.0, "ctranslate2:dtype=int8": 5.0, "ctranslate2:dtype=float32": 6.0}  # fmt: skip
    assert driver.fastest_settings(seconds) == {
        "large": "large:runtime=static",
        "openvino": "openvino:dtype=int8",
        "ctranslate2-int8": "ctranslate2:dtype=int8",
        "ctranslate2-float32": "ctranslate2:dtype=float32",
    }


def test_assisted_generation_is_tuned_once(driver, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(driver, "assisted_seconds", lambda setup, sets: runs.append(1) or {"slow": 2.0, "fast": 1.0})
    setup, sets = driver.Setup(), {"dev": [driver.Example("1", "Wie spät ist es?", ())]}
    assert [driver.tuned_assisted(setup, sets, tmp_path / "a.json") for _ in range(2)] == ["fast", "fast"]
    assert len(runs) == 1
    monkeypatch.setitem(driver.GRID, "dtype", ["float32"])
    driver.tuned_assisted(setup, sets, tmp_path / "a.json")
    assert len(runs) == 2


def test_the_defaults_of_the_driver_are_methods(driver):
    assert {MethodSpec.parse(text).name for text in driver.PEERS.split(",")} == set(PEERS)
    assert "large" in driver.POLICIES.split(",")


# --- an engine, where somebody has made its environment -------------------------------------------------------------


@pytest.mark.skipif(
    not list((environment.cache_folder() / "environments").glob("ctranslate2-*")),
    reason="the environment of ctranslate2 is not installed",
)
@pytest.mark.skipif(os.name == "nt", reason="paths of the environment differ")
def test_ctranslate2_writes_the_large_models_text(bundled, sentences):
    from bild.generation.pair import bundled_pair

    context = PeerContext(str(bundled_pair() / "large"), "", max_new_tokens=128, device="cpu", threads=1)
    peer = PEERS["ctranslate2"](MethodSpec.parse("ctranslate2:dtype=float32"), context)
    expected = bundled.generate(sentences[:10], "large", max_new_tokens=128)
    outputs = [peer(sentence) for sentence in sentences[:10]]
    peer.close()
    assert [output.token_ids for output in outputs] == [result.token_ids for result in expected]
    assert [output.text for output in outputs] == [result.text for result in expected]
