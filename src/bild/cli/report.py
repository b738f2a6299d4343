"""Results to stdout as they come, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from bild.cli.inputs import Line
from bild.cli.job import Decoded, Job

if TYPE_CHECKING:
    from rich.console import Console

    from bild.generation import BigLittleDecoder, Result


@dataclass
class Report:
    """Writes results to stdout and everything else to stderr."""

    decoder: BigLittleDecoder
    as_json: bool
    stats: bool
    trace: bool
    compare: bool
    done: list[Decoded] = field(default_factory=list)
    failed: int = 0

    def run(self, job: Job, lines: Iterator[Line], total: int | None) -> None:
        """Decode and show everything; exit code 2 if a line failed."""
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        try:
            with _progress(console, total) as advance:
                for item in job.run(lines):
                    self._show(item, console)
                    advance()
        except BrokenPipeError:
            # Whoever read our results has seen enough. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._summary(console)
        if self.failed:
            raise typer.Exit(2)

    def _show(self, item: Decoded, console: Console) -> None:
        if item.result is None:
            self.failed += 1
            _say(console, f"error: {item.line.place}: {item.error}")
            return
        self.done.append(item)
        print(self._json(item) if self.as_json else _one_line(item.result.text), flush=True)
        self._extras(item, item.result, console)

    def _extras(self, item: Decoded, result: Result, console: Console) -> None:
        if not (self.trace or self.stats or self.compare):
            return
        from bild.cli import render

        if self.trace:
            console.print("  trace   ", render.trace(result, self.decoder.tokenizer), sep="")
        if self.stats:
            _say(console, f"  stats   {render.counts(result.stats)}")
            _say(console, f"  time    {render.times(result)}")
        if item.alone is not None:
            same = "the same text" if item.alone.text == result.text else item.alone.text
            _say(console, f"  large   {_one_line(same)}")
            _say(
                console,
                f"  time    {result.total_s * 1e3:.1f} ms against {item.alone.total_s * 1e3:.1f} ms "
                f"for large alone: {item.alone.total_s / result.total_s:.2f}×",
            )

    def _json(self, item: Decoded) -> str:
        assert item.result is not None
        values = {
            "source": item.line.text,
            "text": item.result.text,
            "tokens": item.result.tokens(self.decoder.tokenizer),
            "finish_reason": item.result.finish_reason,
            "stats": item.result.stats_dict(),
        }
        if item.alone is not None:
            values["large"] = {"text": item.alone.text, "stats": item.alone.stats_dict()}
            values["speedup"] = item.alone.total_s / item.result.total_s
        return json.dumps(values, ensure_ascii=False)

    def _summary(self, console: Console) -> None:
        if len(self.done) < 2 or not (self.stats or self.compare):
            return
        from bild.cli import render
        from bild.decoding import Stats

        results = [item.result for item in self.done if item.result is not None]
        if self.stats:
            _say(console, f"all       {render.counts(Stats.total(result.stats for result in results))}")
        if self.compare:
            ours, alone = (
                sum(result.total_s for result in side)
                for side in (results, [item.alone for item in self.done if item.alone is not None])
            )
            same = sum(
                item.alone is not None and item.alone.text == item.result.text for item in self.done if item.result
            )
            _say(
                console,
                f"all       {ours:.2f} s against {alone:.2f} s for large alone: {alone / ours:.2f}× "
                f"on {len(results)} texts, {same} of them the same text",
            )


def _one_line(text: str) -> str:
    """One result a line: a text of several lines is joined with spaces (--json keeps them)."""
    return " ".join(text.split("\n")) if "\n" in text else text


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
