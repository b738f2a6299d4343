"""A conversation at a terminal: what is typed is said, or is a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bild.cli import pair_options
from bild.cli.render import OTHER_STYLE, STYLES, counts, times, trace
from bild.cli.terminal import Terminal, stopping
from bild.decoding import Stats
from bild.errors import BildError, InputError, one_line

if TYPE_CHECKING:
    from bild.data.lines import Line
    from bild.generation import Conversation

COMMANDS = {
    "/help": "lists these",
    "/policy": "NAME[:option=value]*: how both models decode from now on; alone: how they do",
    "/drafter": "who drafts from now on, as ngram or first:ngram,small; alone: who does",
    "/system": "the system message from now on; alone: none",
    "/stats": "counts and times of the last answer, and of all so far",
    "/trace": "the last answer with who wrote what, and what was rolled back",
    "/clear": "forgets what was said",
    "/quit": "leaves, as Ctrl-D does; Ctrl-C stops an answer",
}
"""Every command and what it does. A line that begins with two slashes is said with one."""


class Session:
    """Reads lines until there are no more or one says so.

    Args:
        conversation: that goes on.
        terminal: where.
        named: the policy, as the user wrote it.
    """

    def __init__(self, conversation: Conversation, terminal: Terminal, named: str) -> None:
        self.conversation, self.terminal, self.named = conversation, terminal, named
        self.failed = 0
        """Lines that could not be answered."""
        self._total = Stats()
        self._seconds = 0.0
        self._answers = 0
        self._does: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/policy": self._policy,
            "/drafter": self._drafter,
            "/system": self._system,
            "/stats": self._stats,
            "/trace": self._trace,
            "/clear": self._clear,
        }

    def run(self) -> None:
        """Talk until the end of the input, or ``/quit``."""
        if self.terminal.interactive:
            self.terminal.note(self._greeting())
        for line in self.terminal.lines():
            if line.text.split(maxsplit=1)[:1] in (["/quit"], ["/exit"]):
                return
            try:
                self._take(line)
            except BildError as error:
                self.failed += 1
                place = "" if self.terminal.interactive else f"line {line.number}: "
                self.terminal.note(f"error: {place}{one_line(error)}")

    def _take(self, line: Line) -> None:
        """Answer a line, or do what it says."""
        if line.error is not None:
            raise InputError(line.error)
        text = line.text.strip()
        if text.startswith("//"):
            self._answer(text[1:])
        elif text.startswith("/"):
            name, _, rest = text.partition(" ")
            self._command(name, rest.strip())
        elif text:
            self._answer(line.text)

    def _answer(self, text: str) -> None:
        conversation, dropped = self.conversation, self.conversation.dropped
        stopped = False
        with stopping() as stop:
            answer = conversation.say(text)
            try:
                for piece, writer in answer:
                    self.terminal.show(piece, STYLES.get(writer, OTHER_STYLE))
                    if stop.asked:
                        break
            except KeyboardInterrupt:
                stopped = True
            stopped = stopped or stop.asked
            answer.close()
        self.terminal.show("\n", "")
        self._count()
        if stopped:
            self.terminal.note("(stopped)")
        if conversation.dropped > dropped:
            gone = conversation.dropped - dropped
            what = "the oldest turn is" if gone == 1 else f"the {gone} oldest turns are"
            self.terminal.note(f"({what} out of view now: the models have no room for more)")

    def _count(self) -> None:
        if self.conversation.stats is not None:
            self._total = Stats.total([self._total, self.conversation.stats])
            self._seconds += self.conversation.seconds
            self._answers += 1

    def _command(self, name: str, rest: str) -> None:
        if name not in self._does:
            raise InputError(f"there is no command {name}; /help lists them, and // begins a text with a slash")
        self._does[name](rest)

    def _help(self, rest: str) -> None:
        for name, meaning in COMMANDS.items():
            self.terminal.note(f"{name:9} {meaning}")

    def _policy(self, rest: str) -> None:
        if rest:
            chosen = pair_options.choose_policy(self.conversation.decoder, rest)
            self._try(policy=chosen)
            self.conversation.policy, self.named = chosen, rest
        kind = "the large model's own text" if self.conversation.policy.lossless else "not lossless"
        self.terminal.note(f"policy: {self.named} ({kind})")

    def _drafter(self, rest: str) -> None:
        if rest:
            self._try(drafter=rest)
            self.conversation.options = {**self.conversation.options, "drafter": rest}
        self.terminal.note(f"drafter: {self._who}")

    def _system(self, rest: str) -> None:
        self.conversation.system = rest if rest else None
        self.terminal.note("system message set" if rest else "no system message")

    def _stats(self, rest: str) -> None:
        conversation = self.conversation
        if conversation.stats is None:
            raise InputError("nothing was answered yet")
        self.terminal.note(f"last    {counts(conversation.stats)}")
        if conversation.result is not None:
            self.terminal.note(f"        {times(conversation.result)}")
        self.summary()

    def summary(self) -> None:
        """Counts and times of all answers, to stderr; nothing where there was none."""
        if not self._answers:
            return
        self.terminal.note(f"all     {counts(self._total)}")
        rate = self._total.num_tokens / self._seconds if self._seconds else 0.0
        self.terminal.note(f"        {self._answers} answers in {self._seconds:.1f} s, {rate:.1f} tokens a second")

    def _trace(self, rest: str) -> None:
        result = self.conversation.result
        if result is None:
            raise InputError("there is no whole answer to trace")
        self.terminal.note(trace(result, self.conversation.decoder.tokenizer))

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        self.terminal.note("nothing was said")

    def _try(self, **options: object) -> None:
        """Refuse what the pair cannot do before an answer is waited for."""
        given = {**self.conversation.options, **options}
        self.conversation.decoder.generate([], **{"policy": self.conversation.policy, **given})

    @property
    def _who(self) -> str:
        return str(self.conversation.options.get("drafter", self.conversation.decoder.drafter))

    def _greeting(self) -> str:
        return f"policy {self.named}, drafter {self._who}; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves"
