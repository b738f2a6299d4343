"""bild chat: a pipe, a terminal of its own, commands, Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
from contextlib import suppress

import pytest

from bild.cli import chat_session, main, pair_options, terminal
from bild.generation import Conversation, pair
from tests.evaluation.chats import chat_pair


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program on a tiny chat pair: ``run(stdin, …) -> (code, stdout, stderr)``."""
    loaded = []
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: (loaded.append(options), chat_pair())[1])

    def run(stdin: str | bytes, *arguments: object) -> tuple[int, str, str]:
        given = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        options = ["--large", "a", "--small", "b", "--max-new-tokens", "6", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["bild", "chat", *options])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capfd.readouterr()

    run.loaded = loaded
    return run


def answers(*texts: str, policy: str = "large", **options) -> list[str]:
    conversation = Conversation(chat_pair(), policy, **{"max_new_tokens": 6} | options)
    return ["".join(piece for piece, _ in conversation.say(text)) for text in texts]


def test_each_line_of_a_pipe_is_a_turn(run):
    code, out, err = run("w7 w8\n\nw9\n")
    assert (code, out, err) == (0, "".join(f"{text}\n" for text in answers("w7 w8", "w9")), "")
    code, out, err = run("w7 w8", "--stats", "--policy", "bild", "--fallback-threshold", 0.2)
    assert code == 0 and out.count("\n") == 1 and "all     6 tokens" in err and "1 answers in" in err


def test_commands(run):
    code, out, err = run(
        "/stats\nw7\n/policy large\nw9\n/policy\n/clear\nw7\n//w8\n/system w30\nw5\n/help\n/trace\n/stats\n"
        "/drafter ngram\nw5\n/drafter\n/quit\nw6\n"
    )
    one, two = answers("w7", "w9")
    assert out.splitlines()[:3] == [one, two, one] and len(out.splitlines()) == 6, err
    assert "error: line 1: nothing was answered yet" in err and code == 2
    assert "policy: large (the large model's own text)" in err and "nothing was said" in err
    assert "system message set" in err and "/drafter" in err and "tokens a second" in err
    assert "5 answers in" in err and err.count("drafter: ngram") == 2


@pytest.mark.parametrize("said", ["/quit now", "/exit  ", "  /quit\tplease"])
def test_whoever_wants_to_leave_does(run, said):
    assert run(f"{said}\nw7\n") == (0, "", "")


def test_errors_are_lines_and_the_conversation_goes_on(run):
    lines = [
        "/warp",
        "/policy warp",
        "/policy bild:fallback_threshold=-1",
        "/drafter warp",
        " ".join(["w9"] * 70),
        "w7",
    ]
    code, out, err = run("\n".join(lines) + "\n")
    said = err.splitlines()
    assert code == 2 and out == answers("w7")[0] + "\n" and len(said) == 5
    assert said[0] == "error: line 1: there is no command /warp; /help lists them, and // begins a text with a slash"
    assert "warp" in said[1] and "fallback_threshold is -1" in said[2] and "drafter 'warp' is unknown" in said[3]
    assert "the models place at most 64" in said[4]
    code, out, err = run(b"w\xff\nw7\n")
    assert code == 2 and "error: line 1: not UTF-8" in err and out == answers("w7")[0] + "\n"


def test_turns_that_are_out_of_view_are_said(run):
    code, _, err = run("".join(" ".join([f"w{n}"] * 8) + "\n" for n in range(10, 16)))
    assert code == 0 and "(the oldest turn is out of view now: the models have no room for more)" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--policy", "warp"], "policy is 'warp'"),
        (["--chat-template-kwargs", "x"], "--chat-template-kwargs is 'x'; allowed is a JSON object"),
        (["--temperature", "2"], "temperature shapes draws"),
    ],
)
def test_wrong_options_are_one_line(run, arguments, says):
    code, out, err = run("w7\n", *arguments)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_a_large_model_alone_is_drafted_for_by_ngrams(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    code, _, _ = run("/drafter\n")
    assert code == 0 and run.loaded[0]["drafter"] is None
    with monkeypatch.context() as patched:
        patched.setattr(pair, "choose_pair", lambda *names: (_ for _ in ()).throw(SystemExit(str(names[3]))))
        patched.setattr(sys, "argv", ["bild", "chat", "--large", "a"])
        from bild.cli.chat import chat

        with pytest.raises(SystemExit, match="ngram"):
            chat(large="a")
    monkeypatch.setattr(sys, "argv", ["bild", "chat"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


class Typist:
    """A terminal of this process's own: what is typed, and what it shows."""

    def __init__(self, monkeypatch, lines, term: str, environment: dict[str, str]) -> None:
        self.near, far = pty.openpty()
        self.far = os.fdopen(far, "r+b", buffering=0)
        self.streams = {}
        for name in ("stdin", "stdout", "stderr"):
            self.streams[name] = io.TextIOWrapper(self.far, encoding="utf-8", write_through=True)
            monkeypatch.setattr(sys, name, self.streams[name])
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": term, "COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        typed = iter(lines)

        def ask(prompt: str = "") -> str:
            line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr("builtins.input", ask)

    def shown(self) -> str:
        os.set_blocking(self.near, False)
        parts = []
        with suppress(OSError):
            while part := os.read(self.near, 65536):
                parts.append(part)
        return b"".join(parts).decode().replace("\r\n", "\n")

    def close(self) -> None:
        for stream in self.streams.values():
            stream.detach()
        self.far.close()
        os.close(self.near)


@pytest.fixture
def typist(monkeypatch):
    """Opens such a terminal: ``typist("what", "is typed")``."""
    opened = []

    def open_one(*lines: object, term: str = "xterm-256color", **environment: str) -> Typist:
        opened.append(Typist(monkeypatch, lines, term, environment))
        return opened[-1]

    yield open_one
    monkeypatch.undo()
    for each in opened:
        each.close()


def talk(**options) -> chat_session.Session:
    conversation = Conversation(chat_pair(), "exact", **{"max_new_tokens": 6} | options)
    session = chat_session.Session(conversation, terminal.Terminal(), "exact")
    session.run()
    return session


def test_a_terminal_shows_who_wrote_what_in_colours(typist):
    shows_on = typist("w7 w8 w30", KeyboardInterrupt())
    talk(max_new_tokens=20)
    shown = shows_on.shown()
    assert "policy exact, drafter small; /help lists commands" in shown
    # Green for the small model, bold red for the large one.
    assert "\x1b[32m" in shown and "\x1b[1;31m" in shown
    assert "/quit or Ctrl-D leaves; Ctrl-C stops an answer" in shown


@pytest.mark.parametrize(("term", "environment"), [("dumb", {}), ("xterm-256color", {"NO_COLOR": "1"})])
def test_a_terminal_without_colours_shows_the_text(typist, term, environment):
    shows_on = typist("w7 w8", term=term, **environment)
    talk()
    shown = shows_on.shown()
    assert "\x1b[" not in shown.replace("\x1b[0m", "") and answers("w7 w8")[0] in shown


def test_what_a_terminal_would_take_for_commands_is_left_out(typist):
    shows_on = typist(term="dumb")
    terminal.Terminal().show("a\x1b]0;title\x07b\tc\nd\x9b1m", "green")
    assert shows_on.shown() == "a]0;titleb\tc\nd1m"


def test_ctrl_c_stops_the_answer_and_not_the_program(typist, monkeypatch):
    shows_on = typist("w7 w8 w30", "w9", term="dumb")
    shows = []
    each = terminal.Terminal.show

    def show(self, piece, style):
        shows.append(piece)
        each(self, piece, style)
        if len(shows) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(terminal.Terminal, "show", show)
    before = signal.getsignal(signal.SIGINT)
    session = talk(max_new_tokens=20)
    assert signal.getsignal(signal.SIGINT) is before
    shown = shows_on.shown()
    assert shown.count("(stopped)") == 1 and session.failed == 0
    turns = session.conversation.turns
    assert turns[1]["content"] == shows[0] and len(turns) == 4 and turns[3]["content"]


def test_a_second_ctrl_c_breaks_off_at_once():
    with pytest.raises(KeyboardInterrupt), terminal.stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
