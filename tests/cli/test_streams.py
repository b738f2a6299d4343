"""Where stdout is full, closed, or knows ASCII only, the answer is one line and never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from bild.cli import main, pair_options, streams
from bild.errors import InputError

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")


def bild(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The program in a process of its own, without a model: quick."""
    command = [sys.executable, "-c", "from bild.cli import main; main()", *arguments]
    return subprocess.run(command, text=True, encoding="utf-8", **{"stderr": subprocess.PIPE, **options})


@FULL
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"]])
def test_a_full_disk_is_one_line_and_exit_2(arguments):
    with open("/dev/full", "w") as full:
        done = bild(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: cannot write stdout: No space left on device\n")


@FULL
def test_a_full_disk_under_both_streams_leaves_the_exit_code():
    with open("/dev/full", "w") as full:
        assert bild("--version", stdout=full, stderr=full).returncode == 2


@FULL
def test_results_on_a_full_disk(bundled, monkeypatch, capfd):
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)
    monkeypatch.setattr(sys, "argv", ["bild", "generate", "Ich habe Hunger."])
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stopped:
            main()
    assert (stopped.value.code, capfd.readouterr().err) == (2, "error: cannot write stdout: No space left on device\n")


def test_a_reader_that_is_gone_from_the_beginning_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = bild("--version", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_streams_that_the_shell_closed_are_no_traceback():
    command = f"{sys.executable} -c 'from bild.cli import main; main()' generate <&- "
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nothing to decode; give texts, --input FILE, or a pipe\n"
    assert subprocess.run(["bash", "-c", command.replace("generate", "--version") + ">&-"]).returncode == 0


def test_a_text_that_cannot_be_written_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="cannot write stdout: Bad file descriptor"):
        streams.print_line("text")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["translate…"]])
def test_help_and_errors_on_an_ascii_terminal(arguments):
    done = bild(*arguments, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == (0 if "--help" in arguments else 2) and "Traceback" not in done.stderr
    assert done.stdout.isascii() and done.stderr.isascii() and len(done.stderr.splitlines()) == done.returncode // 2


def ascii_stdout(monkeypatch) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    streams.prepare_streams()
    return raw


def test_json_on_an_ascii_stdout_is_json(monkeypatch):
    raw = ascii_stdout(monkeypatch)
    streams.print_json({"text": "läuft\u2028🙂"})
    assert raw.getvalue().isascii() and json.loads(raw.getvalue()) == {"text": "läuft\u2028🙂"}


def test_text_on_an_ascii_stdout_is_escaped_and_told_once(bundled, monkeypatch, capfd):
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)
    monkeypatch.setattr(type(bundled.tokenizer), "decode", lambda *arguments, **options: "läuft")
    monkeypatch.setattr(sys, "argv", ["bild", "generate", "Ich habe Hunger.", "Ich laufe."])
    with monkeypatch.context() as patched:
        raw = ascii_stdout(patched)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code, raw.getvalue()) == (0, b"l\\xe4uft\n" * 2)
    assert capfd.readouterr().err == (
        "note: stdout takes ascii only, so other characters are written as \\xe4; "
        "set PYTHONIOENCODING=utf-8, or use --json\n"
    )


def test_half_a_character_in_an_argument_is_one_line_and_exit_2():
    done = subprocess.run(
        [sys.executable, "-c", "from bild.cli import main; main()", "translate\udcff"], capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--prefix", "\udcff"], ["--system", "\ud83d"], ["--stop", "x\udce4"]])
def test_texts_that_are_no_text_are_refused_before_anything_is_loaded(monkeypatch, capfd, options):
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: pytest.fail("loaded"))
    monkeypatch.setattr(sys, "argv", ["bild", "generate", "Hunde" if options else "Hunde\udcff", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    err = capfd.readouterr().err
    assert stopped.value.code == 2 and len(err.splitlines()) == 1
    assert ("half of a surrogate" if "--system" in options else "not UTF-8 (byte 0x") in err
