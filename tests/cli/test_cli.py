"""The command line: results on stdout, everything else on stderr, exit code 2 after a one-line error."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from bild import BigLittleDecoder, InputError, LoadError, Policy
from bild.cli import main, pair_options
from bild.decoding import ExactMatch
from bild.generation import pair

TWO = ["Ich habe Hunger.", "Ein Junge mit Kopfhörern sitzt auf den Schultern einer Frau."]


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """Run the program on the bundled pair, loaded once: ``run("generate", …) -> (code, stdout, stderr)``."""
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)
    return _runner(monkeypatch, capfd)


@pytest.fixture
def run_for_real(monkeypatch, capfd):
    """The same with loading."""
    return _runner(monkeypatch, capfd)


def _runner(monkeypatch, capfd):
    def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return stopped.value.code, out, err

    return run


def translations(bundled, texts, policy=None, **options) -> list[str]:
    return [result.text for result in bundled.generate(texts, policy, **options)]


def test_texts_from_arguments_a_file_and_a_pipe(run, bundled, tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("\n".join(TWO) + "\n", encoding="utf-8")
    expected = (0, "".join(f"{text}\n" for text in translations(bundled, TWO)), "")
    assert run("generate", *TWO) == expected
    assert run("generate", "--input", file) == expected
    assert run("generate", "--input", "-", stdin=file.read_bytes()) == expected
    assert run("generate", stdin=file.read_bytes()) == expected


@pytest.mark.parametrize("options", [[], ["--batch-size", "3"], ["--compare"], ["--compare", "--batch-size", "2"]])
def test_line_n_of_the_results_belongs_to_line_n_of_the_input(run, bundled, options, tmp_path):
    """A blank line stays one, and a line that cannot be decoded is reported and leaves one."""
    data = f"{TWO[0]}\r\n\n{TWO[1]}\n \n".encode() + b"\xff\xfe\n" + TWO[0].encode() + b"\n\n"
    first, second = translations(bundled, TWO)
    file = tmp_path / "in.txt"
    file.write_bytes(data)
    for given in ({"stdin": data}, {}):
        code, out, err = run("generate", *options, *([] if given else ["--input", file]), **given)
        assert code == 2
        assert out.split("\n") == [first, "", second, "", "", first, "", ""]
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert errors == ["error: line 5: not UTF-8 (byte 0xff at 0); convert the file"]


def test_json_has_an_object_for_every_line_of_a_file(run, bundled):
    code, out, _ = run("generate", "--json", stdin=f"{TWO[0]}\n\n".encode() + b"\xe4\n")
    shown = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and [one["text"] for one in shown] == [*translations(bundled, TWO[0]), "", None]
    assert [one.get("error") for one in shown] == [None, None, "not UTF-8 (byte 0xe4 at 0); convert the file"]
    assert [set(one) - {"error"} for one in shown] == [{"source", "text", "tokens", "finish_reason", "stats"}] * 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_mark_at_the_beginning_of_a_file_is_not_part_of_its_first_line(run, tmp_path, encoding):
    file = tmp_path / "in.txt"
    shown = []
    for name in ("utf-8", encoding):
        file.write_bytes("\n".join(TWO).encode(name))
        rows = [json.loads(line) for line in run("generate", "--json", "--input", file)[1].splitlines()]
        shown.append([(row["source"], row["text"]) for row in rows])
    assert shown[1] == shown[0] and [source for source, _ in shown[1]] == TWO


def test_texts_of_one_run_do_not_share_their_random_numbers(run, bundled):
    """One call of the decoder for all lines: by line, each would begin its sequence anew."""
    options = {"do_sample": True, "seed": 3, "temperature": 2.0, "max_new_tokens": 8}
    arguments = ["--do-sample", "--seed", "3", "--temperature", "2", "--max-new-tokens", "8"]
    _, out, _ = run("generate", *[TWO[1]] * 4, *arguments)
    assert out.splitlines() == translations(bundled, [TWO[1]] * 4, **options)
    assert run("generate", *[TWO[1]] * 4, *arguments, "--compare")[1] == out


def test_a_text_that_fails_on_the_way_is_named_by_its_line(run, monkeypatch):
    def fails_at_the_second(self, inputs, *arguments, batch_size=1, **options):
        for number, _ in enumerate(inputs):
            if number == 1:
                raise LoadError("the large model computed NaN")
            yield from each(self, [TWO[0]])

    each = BigLittleDecoder.generate_each
    monkeypatch.setattr(BigLittleDecoder, "generate", lambda *arguments, **options: [])
    monkeypatch.setattr(BigLittleDecoder, "generate_each", fails_at_the_second)
    code, out, err = run("generate", stdin=f"{TWO[0]}\n\n\n{TWO[1]}\n".encode())
    assert (code, out.count("\n"), err) == (2, 3, "error: line 4: the large model computed NaN\n")


def test_json_has_every_token_and_its_writer(run, bundled):
    code, out, _ = run("generate", *TWO, "--json", "--policy", "exact")
    objects = [json.loads(line) for line in out.splitlines()]
    results = bundled.generate(TWO, "exact")
    assert code == 0 and [o["source"] for o in objects] == TWO
    for shown, result in zip(objects, results, strict=True):
        assert list(shown) == ["source", "text", "tokens", "finish_reason", "stats"]
        assert (shown["text"], shown["finish_reason"]) == (result.text, "eos")
        assert [t["id"] for t in shown["tokens"]] == result.token_ids
        assert [t["writer"] for t in shown["tokens"]] == result.writers
        assert "".join(t["text"] for t in shown["tokens"][:-1]) == result.text
        assert shown["stats"]["num_large_steps"] == result.stats.num_large_steps
        assert shown["stats"]["ttft_s"] > 0


def test_logprobs_stand_beside_the_tokens_of_json_only(run, bundled):
    _, out, _ = run("generate", TWO[1], "--json", "--logprobs", "2")
    (plain,) = bundled.generate(TWO[1])
    (result,) = bundled.generate(TWO[1], logprobs=2)
    tokens = json.loads(out)["tokens"]
    assert plain.logprobs is None and plain.token_ids == result.token_ids == [t["id"] for t in tokens]
    assert [t["logprob"] for t in tokens] == pytest.approx(result.logprobs)
    assert all(t["likeliest"][0]["logprob"] >= t["logprob"] and len(t["likeliest"]) == 2 for t in tokens)
    # Most of what was kept is what the large model would have written.
    same = [t for t in tokens if t["likeliest"][0]["id"] == t["id"]]
    assert len(same) > len(tokens) / 2 and same[-1]["likeliest"][0]["text"].strip() == same[-1]["text"].strip()
    code, out, err = run("generate", TWO[0], "--logprobs", "2")
    assert (code, out) == (2, "") and err.startswith("error: logprobs are shown in JSON only; give --json")
    assert run("generate", TWO[0], "--json", "--logprobs", "-1")[0] == 2


@pytest.mark.parametrize("policy", ["exact", "large", "small"])
def test_policies(run, bundled, policy):
    assert run("generate", *TWO, "--policy", policy)[1].splitlines() == translations(bundled, TWO, policy)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        (["--fallback-threshold", "0.9"], {"fallback_threshold": 0.9}),
        (["--rollback-threshold", "0.1"], {"rollback_threshold": 0.1}),
        (["--max-draft-tokens", "2"], {"max_draft_tokens": 2}),
        (["--verify-end", "yes"], {"verify_end": True}),
        (["--verify-end", "0.6"], {"verify_end": 0.6}),
        (["--verify-end", "no", "--fallback-threshold", "0"], {"verify_end": False, "fallback_threshold": 0.0}),
    ],
)
def test_thresholds_override_those_of_the_pair(bundled, monkeypatch, options, policy, run):
    own = {"fallback_threshold": 0.31, "rollback_threshold": 1.7, "max_draft_tokens": 9, "verify_end": 0.5}
    choose = pair.choose_pair
    monkeypatch.setattr(pair, "choose_pair", lambda *names: replace(choose(*names), policy=Policy.bild(**own)))
    seen = []
    each = BigLittleDecoder.generate_each
    monkeypatch.setattr(
        BigLittleDecoder, "generate_each", lambda self, *a, **k: (seen.append(a[1]), each(self, *a, **k))[1]
    )
    assert run("generate", TWO[0], *options)[0] == 0
    assert seen[-1] == Policy.bild(**(own | policy))


def test_exact_takes_thresholds_too(bundled):
    policy = pair_options.choose_policy(bundled, "exact", fallback_threshold=0.2, verify_end=None)
    assert policy == Policy.exact(fallback_threshold=0.2) and isinstance(policy.acceptance, ExactMatch)


OPTIONS = {
    "--max-new-tokens": ("3", {"max_new_tokens": 3}),
    "--min-new-tokens": ("20", {"min_new_tokens": 20}),
    "--repetition-penalty": ("4", {"repetition_penalty": 4.0, "min_new_tokens": 20}),
    "--no-repeat-ngram-size": ("1", {"no_repeat_ngram_size": 1, "min_new_tokens": 20}),
    "--stop": ("boy", {"stop_strings": ["boy"]}),
    "--max-length": ("6", {"max_length": 6}),
    "--prefix": ("Zwei Hunde und ", {"prefix": "Zwei Hunde und "}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_text_options_reach_the_loop(run, bundled, name):
    value, option = OPTIONS[name]
    # A text that ends early has nothing to repeat.
    longer = {"min_new_tokens": 20} if "min_new_tokens" in option else {}
    extra = ["--min-new-tokens", "20"] if longer and name != "--min-new-tokens" else []
    _, out, _ = run("generate", TWO[1], name, value, *extra)
    expected = translations(bundled, TWO[1], **option)
    assert out.splitlines() == expected != translations(bundled, TWO[1], **(longer if extra else {}))


SAMPLING = {
    "--temperature": ("3", {"temperature": 3.0}),
    "--top-k": ("2", {"top_k": 2}),
    "--top-p": ("0.5", {"top_p": 0.5}),
    "--min-p": ("0.2", {"min_p": 0.2}),
    "--seed": ("8", {"seed": 8}),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_options_reach_the_loop(run, bundled, name):
    value, option = SAMPLING[name]
    base = {"seed": 5, "temperature": 2.0, "do_sample": True, "max_new_tokens": 24}
    given = {"--seed": "5", "--temperature": "2", "--max-new-tokens": "24"} | {name: value}
    _, out, _ = run("generate", TWO[1], "--do-sample", *(part for pair in given.items() for part in pair))
    expected = translations(bundled, TWO[1], **(base | option))
    assert out.splitlines() == expected != translations(bundled, TWO[1], **base)


@pytest.mark.parametrize("policy", [[], ["--policy", "exact"], ["--policy", "small"]])
def test_beams_reach_the_loop(run, bundled, policy):
    search = ["--beams", "3", "--length-penalty", "-2", "--early-stopping", "never"]
    _, out, _ = run("generate", *TWO, "--json", *search, *policy)
    asked = {"num_beams": 3, "length_penalty": -2.0, "early_stopping": "never"}
    expected = bundled.generate(TWO, policy[-1] if policy else None, **asked)
    for line, result in zip(map(json.loads, out.splitlines()), expected, strict=True):
        assert line["text"] == result.text == line["hypotheses"][0]["text"]
        assert [each["score"] for each in line["hypotheses"]] == [each.score for each in result.hypotheses]
        assert len(line["hypotheses"]) == 3 and len({each["text"] for each in line["hypotheses"]}) > 1
    assert "hypotheses" not in json.loads(run("generate", TWO[0], "--json", "--beams", "1")[1])


def test_drawn_beams_reach_the_loop(run, bundled):
    drawn = ["--beams", "3", "--do-sample", "--temperature", "2", "--top-k", "20", "--seed", "5"]
    found = [json.loads(line)["hypotheses"] for line in run("generate", *TWO, "--json", *drawn)[1].splitlines()]
    scores = [[each["score"] for each in line] for line in found]
    asked = {"num_beams": 3, "do_sample": True, "temperature": 2.0, "top_k": 20}
    for seed, same in ((5, True), (6, False)):
        results = bundled.generate(TWO, "large", seed=seed, **asked)
        assert (scores == [[each.score for each in result.hypotheses] for result in results]) == same


def test_every_line_draws_its_own_numbers_in_whatever_batches(run, bundled):
    loose = ["--do-sample", "--temperature", "2", "--seed", "5", "--max-new-tokens", "24"]
    lines = "\n".join([TWO[1], " ", TWO[1], TWO[1]]).encode()
    _, out, _ = run("generate", *loose, stdin=lines)
    assert out == run("generate", *loose, "--batch-size", "3", stdin=lines)[1]
    texts = translations(bundled, [TWO[1]] * 3, do_sample=True, temperature=2.0, seed=5, max_new_tokens=24)
    assert out.splitlines() == [texts[0], "", texts[1], texts[2]] and len(set(texts)) == 3


def test_several_texts_of_every_line(run, bundled, tmp_path):
    file = tmp_path / "in.txt"
    file.write_text(f"{TWO[1]}\n\n{TWO[0]}\n", encoding="utf-8")
    loose = {"do_sample": True, "temperature": 2.0, "seed": 5, "max_new_tokens": 12}
    drawn = translations(bundled, [text for text in (TWO[1], TWO[0]) for _ in range(2)], **loose)
    assert drawn[0] != drawn[1]
    options = ["--do-sample", "--temperature", "2", "--seed", "5", "--max-new-tokens", "12", "--batch-size", "3"]
    code, out, _ = run("generate", "--input", file, "--num-return-sequences", "2", *options)
    assert (code, out.split("\n")) == (0, [*drawn[:2], "", "", *drawn[2:], ""])
    _, out, _ = run("generate", "--input", file, "--num-return-sequences", "2", "--json", *options)
    sources = [json.loads(line)["source"] for line in out.splitlines()]
    assert sources == [text for text in (TWO[1], "", TWO[0]) for _ in range(2)]
    code, out, err = run("generate", "--num-return-sequences", "2", *TWO)
    assert (code, out) == (2, "") and "set do_sample" in err


@pytest.mark.parametrize("command", ["tune", "evaluate"])
def test_languages_reach_the_pair(command, monkeypatch, capfd, tmp_path):
    asked = []
    monkeypatch.setattr(BigLittleDecoder, "from_pretrained", lambda *_, **__: Spoken(asked))
    data = tmp_path / "dev.jsonl"
    data.write_text('{"source": "a", "target": "b"}\n')
    arguments = [command, "--data", data, "--out", tmp_path / "out", "--src-lang", "deu_Latn", "--tgt-lang", "fra_Latn"]
    save = ["--save", tmp_path / "saved"] if command == "tune" else []
    assert _runner(monkeypatch, capfd)(*arguments, *save)[0] == 2
    assert asked == [("deu_Latn", "fra_Latn")]


class Spoken:
    """Ends a command as soon as it has named its languages."""

    def __init__(self, asked: list) -> None:
        self.asked = asked

    def set_languages(self, *languages) -> None:
        if any(languages):
            self.asked.append(languages)
            raise InputError("heard")


def test_compare_and_trace_and_stats_go_to_stderr(run, bundled):
    code, out, err = run("generate", *TWO, "--compare", "--trace", "--stats")
    results = bundled.generate(TWO)
    assert code == 0 and out.splitlines() == [r.text for r in results]
    traces = [line.split(maxsplit=1)[1] for line in err.splitlines() if line.startswith("  trace")]
    for shown, result in zip(traces, results, strict=True):
        assert shown.count("[") == result.stats.num_large_tokens
        assert shown.count("~") == 2 * result.stats.num_rollbacks
    assert err.count("for large alone") == 3 and err.splitlines()[-1].endswith("of them the same text")
    assert sum(line.startswith("  large") for line in err.splitlines()) == 2


def test_compare_in_json(run, bundled):
    _, out, _ = run("generate", TWO[1], "--compare", "--json")
    shown = json.loads(out)
    assert shown["large"]["text"] == translations(bundled, TWO[1], "large")[0]
    assert shown["speedup"] == pytest.approx(shown["large"]["stats"]["total_s"] / shown["stats"]["total_s"])


def test_a_drafter_by_name_with_the_large_model_alone(run_for_real, bundled):
    text = "Herr Wolfgang Schmidthuber aus Unterschleißheim lacht."
    drafter = "ngram:shortest=1:look_in=source"
    arguments = [
        "--large",
        pair.bundled_pair() / "large",
        "--dtype",
        "float32",
        "--runtime",
        "eager",
        "--policy",
        "exact",
    ]
    code, out, err = run_for_real("generate", text, *arguments, "--drafter", drafter, "--trace", "--stats")
    (result,) = bundled.generate(text, "exact", drafter=drafter)
    assert (code, out) == (0, translations(bundled, text, "large")[0] + "\n")
    written = result.stats.num_tokens_by_writer["ngram"]
    assert err.count("{") == written > 0 and " by ngram · " in err


def test_a_rolled_back_draft_is_shown_struck_through(bundled):
    from bild.cli import render

    (result,) = bundled.generate(TWO[1], Policy.bild(fallback_threshold=0.05, rollback_threshold=0.1))
    assert result.stats.num_rollbacks > 0
    shown = render.trace(result, bundled.tokenizer)
    struck = [shown.plain[span.start : span.end] for span in shown.spans if "strike" in str(span.style)]
    assert len(struck) == result.stats.num_rollbacks and all(s[0] == s[-1] == "~" for s in struck)
    kept = "".join(
        shown.plain[s.start : s.end].strip("[]") if "strike" not in str(s.style) else "" for s in shown.spans
    )
    assert kept.replace(" ", "") == (result.text + "</s>").replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", " "], "text 1: the text is empty"),
        (["generate", "x", "--policy", "fast"], "policy is 'fast'; allowed are bild, exact, speculative_sampling, "),
        (["generate", "x", "--fallback-threshold", "-0.1"], "fallback_threshold is -0.1; allowed is 0 to 1"),
        (["generate", "x", "--rollback-threshold", "-1"], "rollback_threshold is -1.0; allowed is 0 or more"),
        (["generate", "x", "--drafter", "n-gram"], "drafter 'n-gram' is unknown; write small, ngram, "),
        (["generate", "x", "--drafter", "ngram:window=0"], "window is 0; allowed is 1 or more"),
        (["generate", "x", "--large", "a", "--drafter", "first:ngram,small"], "small is missing; name both"),
        (["generate", "x", "--max-draft-tokens", "0"], "max_draft_tokens is 0"),
        (
            ["generate", "x", "--policy", "large", "--verify-end", "yes"],
            "policy 'large' has no option verify_end; it takes none",
        ),
        (["generate", "x", "--verify-end", "maybe"], "verify_end is 'maybe'; allowed is a number, yes or no"),
        (["generate", "x", "--verify-end", "2"], "verify_end is 2.0"),
        (["generate", "x", "--max-new-tokens", "0"], "max_new_tokens is 0; allowed is 1 or more"),
        (["generate", "x", "--batch-size", "0"], "batch_size is 0"),
        (["generate", "x", "--lossless"], "does not give the large model's own text"),
        (["generate", "x", "--task", "summarization"], "task is 'summarization'; this checkpoint names none"),
        (["generate", "x", "--chat"], "no chat template"),
        (
            ["generate", "x", "--chat-template-kwargs", "[1]"],
            "--chat-template-kwargs is '[1]'; allowed is a JSON object",
        ),
        (["generate", "x", "--chat-template-kwargs", "[" * 100_000], "allowed is a JSON object"),
        (["generate", "x", "--chat-template-kwargs", '{"a": 1}'], "chat_template_kwargs needs a chat"),
        (["generate", "x", "--system", "y"], "system needs a chat"),
        (["generate", "x", "--src-lang", "de"], "src_lang is 'de', but the checkpoint's tokenizer knows no source"),
        (["generate", "x", "--tgt-lang", "fr"], "tgt_lang is 'fr', which is no language of this checkpoint"),
        (
            ["generate", "x", "--temperature", "0.5"],
            "temperature shapes draws, and this call draws nothing; set do_sample",
        ),
        (["generate", "x", "--beams", "0"], "num_beams is 0; allowed is 1"),
        (["generate", "x", "--beams", "2", "--policy", "bild"], "a beam search is of one model"),
        (["generate", "x", "--beams", "2", "--early-stopping", "soon"], "allowed are yes, no and never"),
        (["generate", "x", "--length-penalty", "2"], "length_penalty shapes a beam search"),
        (["generate", "x", "--beams", "2", "--fallback-threshold", "0.5"], "has no option fallback_threshold"),
        (["generate", "x", "--do-sample", "--seed", str(2**64)], "allowed are whole numbers of 64 bits"),
        (["generate", "x", "--stop", ""], "allowed are texts of at least one letter"),
        (["generate", "x", "--input", "y"], "give texts or --input, not both"),
        (["generate", "--input", "/no/such/file"], "cannot read /no/such/file: No such file"),
        (["generate", "x", "--warp"], "No such option"),
        (["generate", "x", "--batch-size", "many"], "--batch-size"),
        (["translate"], "No such command"),
    ],
)
def test_errors_are_one_line_and_exit_2(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--large", "/nowhere", "--small", "/nowhere"], "no such folder: /nowhere"),
        (
            ["--large", "someone/large", "--small", "someone/small"],
            "the hub has no such repository",
        ),
        (["--large", "/nowhere"], "small is missing"),
        (["--pair", "/nowhere"], "no such pair"),
        (["--dtype", "int3"], "dtype is 'int3'"),
        (["--device", "moon"], "device is 'moon'"),
        (["--runtime", "warp"], "runtime is 'warp'"),
    ],
)
def test_models_that_cannot_be_loaded_are_one_line_and_exit_2(run_for_real, arguments, says):
    for command in (["generate", "x"], ["info"]):
        code, out, err = run_for_real(*command, *arguments)
        assert (code, out) == (2, "") and err.startswith("error: ") and says in err
        assert len(err.splitlines()) == 1


def test_chat_options_reach_the_prompt(bundled, monkeypatch):
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    monkeypatch.setattr(bundled.tokenizer, "chat_template", template, raising=False)
    ids = bundled.prompter(chat=True, system="Kurz.").encode("Hallo")
    assert bundled.tokenizer.decode(ids) == bundled.tokenizer.decode(
        bundled.tokenizer("system Kurz. user Hallo ", add_special_tokens=False).input_ids
    )
    assert bundled.prompter().encode("Hallo") == bundled.tokenizer("Hallo").input_ids


def test_info(run, bundled):
    code, out, err = run("info", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["large"]["parameters"] == sum(p.numel() for p in bundled.large.network.parameters())
    assert (facts["large"]["decoder_layers"], facts["small"]["decoder_layers"]) == (8, 1)
    assert (facts["large"]["encoder_layers"], facts["small"]["encoder_layers"]) == (8, 4)
    assert facts["shared_vocabulary"] == 8000
    assert facts["cost_ratio"] == pytest.approx(facts["small"]["step_ms"] / facts["large"]["step_ms"])
    assert 0.02 < facts["cost_ratio"] < 0.9
    assert not facts["one_encoder"]
    code, out, _ = run("info")
    assert code == 0 and "17.8 M" in out and "a small step costs" in out


def test_version_and_help(run):
    assert run("--version")[1].startswith("bild ")
    assert "--fallback-threshold" in run("generate", "--help")[1]


def bild(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", "from bild.cli import main; main()", "generate", *arguments]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, preexec_fn=_hear_interrupts, **pipes, **options)


def _hear_interrupts() -> None:
    """A shell that runs the tests in the background makes its children deaf to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_reader_that_stops_reading_ends_the_run_quietly():
    with bild("--input", "-") as process:
        process.stdin.write(TWO[0].encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
        process.stdout.close()
        process.stdin.write(b"\n".join(text.encode() for text in TWO))
        process.stdin.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_an_interrupt_leaves_what_is_done_on_stdout(bundled):
    with bild("--input", "-", "--dtype", "float32", env=os.environ | {"PYTHONUNBUFFERED": ""}) as process:
        process.stdin.write(TWO[0].encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline().decode().strip()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert line == translations(bundled, TWO[0])[0]
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_progress_bar_on_the_terminal_leaves_results_on_stdout(bundled, tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("\n".join(TWO), encoding="utf-8")
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-c", "from bild.cli import main; main()", "generate", "-i", str(file)]
    pieces: list[bytes] = []

    def read() -> None:
        # While it runs: a terminal holds some thousand bytes, and whoever writes more waits.
        with suppress(OSError):
            while piece := os.read(terminal, 100_000):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with open(tmp_path / "out.txt", "wb") as out:
        code = subprocess.call([*command, "--dtype", "float32"], stdout=out, stderr=stderr, stdin=stderr)
    os.close(stderr)
    reader.join()
    os.close(terminal)
    assert code == 0 and b"decoding" in b"".join(pieces)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == translations(bundled, TWO)


def test_a_middle_model_from_the_command_line(run_for_real, bundled):
    """The n-gram drafts for the small model, and that for the large one; or its own first layers stand between."""
    expected = "".join(f"{text}\n" for text in translations(bundled, TWO, "exact"))
    here = ("--dtype", "float32", "--runtime", "eager", "--policy", "exact")
    for middle in (
        ("--middle", "small", "--drafter", "ngram:shortest=1"),
        ("--middle", "exit:4", "--middle-window", 3),
    ):
        code, out, err = run_for_real("generate", *middle, *here, "--stats", "--trace", *TWO)
        assert (code, out) == (0, expected) and "steps" in err, err
    assert " middle and " in err
    for wrong, says in (
        (("--middle", "small"), "drafter 'small' needs it too"),
        (("--middle-window", 3), "there is no middle model"),
        (("--middle", "exit:9"), "exit"),
        (("--middle", "/no/such/model"), "/no/such/model"),
    ):
        code, out, err = run_for_real("generate", *wrong, *here, *TWO)
        assert (code, out) == (2, "") and says in err and err.count("\n") == 1, err
