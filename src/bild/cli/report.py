"""Results to stdout as they come, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from bild.cli.inputs import Source
from bild.cli.line_decoder import Decoded, LineDecoder
from bild.cli.streams import lacks, print_json, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from bild.decoding import Stats
    from bild.generation import BigLittleDecoder, Result


@dataclass
class Totals:
    """What all results so far come to; the results themselves are not kept."""

    texts: int = 0
    stats: Stats | None = None
    seconds: float = 0.0
    alone_seconds: float = 0.0
    same: int = 0
    """Texts that the large model alone writes, too."""

    def add(self, result: Result, alone: Result | None) -> None:
        """Count one text."""
        from bild.decoding import Stats

        self.texts += 1
        self.stats = Stats.total([result.stats] if self.stats is None else [self.stats, result.stats])
        self.seconds += result.total_s
        if alone is not None:
            self.alone_seconds += alone.total_s
            self.same += alone.text == result.text


@dataclass
class Report:
    """Writes results to stdout and everything else to stderr."""

    decoder: BigLittleDecoder
    as_json: bool
    stats: bool
    trace: bool
    compare: bool
    totals: Totals = field(default_factory=Totals)
    failed: int = 0
    _told_of_encoding: bool = False

    def run(self, lines: LineDecoder, sources: Iterator[Source], total: int | None) -> None:
        """Decode and show everything; exit code 2 if a text failed."""
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        with _progress(console, total) as advance:

            def show(item: Decoded) -> None:
                self._show(item, console)
                advance()

            lines.run(sources, show)
        self._summary(console)
        if self.failed:
            raise typer.Exit(2)

    def _show(self, item: Decoded, console: Console) -> None:
        if item.error is not None:
            self.failed += 1
            _say(console, f"error: {item.source.place}: {item.error}")
        if item.result is not None or item.source.keeps_line:
            self._write(item, console)
        if item.result is not None:
            self._extras(item, item.result, console)

    def _write(self, item: Decoded, console: Console) -> None:
        if self.as_json:
            print_json(self._values(item))
            return
        text = "" if item.result is None else folded(item.result.text)
        if lacks(text) and not self._told_of_encoding:
            self._told_of_encoding = True
            _say(
                console,
                f"note: stdout takes {sys.stdout.encoding} only, so other characters are written as \\xe4; "
                "set PYTHONIOENCODING=utf-8, or use --json",
            )
        print_line(text)

    def _extras(self, item: Decoded, result: Result, console: Console) -> None:
        if not (self.trace or self.stats or self.compare):
            return
        from bild.cli import render

        self.totals.add(result, item.alone)
        if self.trace:
            console.print("  trace   ", render.trace(result, self.decoder.tokenizer), sep="")
        if self.stats:
            _say(console, f"  stats   {render.counts(result.stats)}")
            _say(console, f"  time    {render.times(result)}")
        if item.alone is not None:
            same = "the same text" if item.alone.text == result.text else item.alone.text
            _say(console, f"  large   {folded(same)}")
            _say(
                console,
                f"  time    {result.total_s * 1e3:.1f} ms against {item.alone.total_s * 1e3:.1f} ms "
                f"for large alone: {item.alone.total_s / result.total_s:.2f}×",
            )

    def _values(self, item: Decoded) -> dict[str, Any]:
        """The object of a line; what could not be decoded has no text but an error, a blank line has neither tokens."""
        result = item.result
        if result is None:
            empty: dict[str, Any] = {"source": item.source.text, "text": None if item.error else "", "tokens": []}
            return {**empty, "finish_reason": None, "stats": None} | ({"error": item.error} if item.error else {})
        values: dict[str, Any] = {
            "source": item.source.text,
            "text": result.text,
            "tokens": result.tokens(self.decoder.tokenizer),
            "finish_reason": result.finish_reason,
            **self._hypotheses(result),
            "stats": result.stats_dict(),
        }
        if item.alone is not None:
            values["large"] = {"text": item.alone.text, "stats": item.alone.stats_dict()}
            values["speedup"] = item.alone.total_s / result.total_s
        return values

    def _hypotheses(self, result: Result) -> dict[str, Any]:
        """What a beam search has finished, the best first; nothing without one."""
        from bild.generation.text import decode

        found = [
            {"text": decode(self.decoder.tokenizer, tokens), "score": score, "finish_reason": reason}
            for tokens, score, reason in result.hypotheses
        ]
        return {"hypotheses": found} if found else {}

    def _summary(self, console: Console) -> None:
        totals, traffic = self.totals, self.decoder.traffic
        if self.stats and traffic is not None and totals.stats is not None:
            up, down = (each / max(1, totals.stats.num_tokens) for each in (traffic.bytes_up, traffic.bytes_down))
            again = f" · {traffic.retries} asked again" if traffic.retries else ""
            _say(console, f"  link    {traffic.requests} requests · bytes a token: {up:.1f} up, {down:.1f} down{again}")
        if totals.texts < 2 or totals.stats is None:
            return
        from bild.cli import render

        if self.stats:
            _say(console, f"all       {render.counts(totals.stats)}")
        if self.compare:
            times = totals.alone_seconds / totals.seconds
            _say(
                console,
                f"all       {totals.seconds:.2f} s against {totals.alone_seconds:.2f} s for large alone: {times:.2f}× "
                f"on {totals.texts} texts, {totals.same} of them the same text",
            )


def folded(text: str) -> str:
    """One result a line, however its reader splits lines: line ends become spaces (--json keeps them)."""
    return " ".join(text.splitlines())


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False)


@contextmanager
def _progress(console: Console, total: int | None) -> Iterator[Any]:
    """A bar for files where stderr is a terminal and stdout goes elsewhere."""
    if total is None or total < 2 or not console.is_terminal or sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import Progress

    # Left alone, rich would send what is printed to the bar's console: results belong to stdout.
    with Progress(console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
