"""bild generate: text in, text out, one result a line as soon as it is ready."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli.inputs import Line, read_lines
from bild.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder, Result

INPUT = "Input"
OUTPUT = "Output"
TEXT = "Text"


def generate(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to decode.", show_default=False)] = None,
    input: Annotated[
        str | None, typer.Option("--input", "-i", help="File with one text a line; - for stdin.", rich_help_panel=INPUT)
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help='Put before every text, as T5\'s "summarize: ".', rich_help_panel=INPUT)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task whose prefix a T5 checkpoint brings.", rich_help_panel=INPUT)
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Treat texts as a user's turn. Default: if there is a chat template.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of a chat.", rich_help_panel=INPUT)] = None,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "eager",
    trust_remote_code: options.TrustRemoteCode = False,
    policy: Annotated[
        str, typer.Option(help="bild, exact (lossless), large or small.", rich_help_panel=options.POLICY)
    ] = "bild",
    fallback_threshold: options.FallbackThreshold = None,
    rollback_threshold: options.RollbackThreshold = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    verify_end: options.VerifyEnd = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Insist on the large model's own text.", rich_help_panel=options.POLICY)
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest text, 1…", rich_help_panel=TEXT)] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Shortest text, 0…", rich_help_panel=TEXT)] = None,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Draw tokens instead of taking the most likely.", rich_help_panel=TEXT)
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Above 0.", rich_help_panel=TEXT)] = None,
    top_k: Annotated[int | None, typer.Option(help="0 = all.", rich_help_panel=TEXT)] = None,
    top_p: Annotated[float | None, typer.Option(help="0…1.", rich_help_panel=TEXT)] = None,
    min_p: Annotated[float | None, typer.Option(help="0…1.", rich_help_panel=TEXT)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 0; 1 = none.", rich_help_panel=TEXT)] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="0 = off.", rich_help_panel=TEXT)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the output; may be repeated.", rich_help_panel=TEXT)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", rich_help_panel=TEXT)] = None,
    batch_size: Annotated[int, typer.Option(help="Texts decoded together, 1…", rich_help_panel=TEXT)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.", rich_help_panel=OUTPUT)] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Counts and times on stderr.", rich_help_panel=OUTPUT)] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Who wrote which token, on stderr.", rich_help_panel=OUTPUT)
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also run the large model alone: both texts, both times, speedup.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Decode texts with a small and a large model together.

    Results go to stdout, one a line, as soon as they are ready; everything else goes to stderr. A line
    that cannot be decoded is reported with its number, the others still come out; the exit code is then 2.
    """
    # Read before anything is loaded: a wrong path should not cost the user half a minute.
    lines, total = read_lines(texts, input)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    chosen = options.choose_policy(
        decoder,
        policy,
        fallback_threshold=fallback_threshold,
        rollback_threshold=rollback_threshold,
        max_draft_tokens=max_draft_tokens,
        verify_end=verify_end,
    )
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; allowed is 1 or more")
    asked: dict[str, Any] = {
        "lossless": lossless,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "stop_strings": stop or None,
        "seed": seed,
    }
    source = {"prefix": prefix, "task": task, "chat": chat, "system": system}
    job = Job(decoder, chosen, source, asked, batch_size, compare)
    Report(decoder, as_json=as_json, stats=stats, trace=trace, compare=compare).run(job, lines, total)


@dataclass
class Decoded:
    """A line and what became of it."""

    line: Line
    result: Result | None = None
    alone: Result | None = None
    """The large model's own, with --compare."""
    error: str | None = None


@dataclass
class Job:
    """Decodes lines batch by batch, in order, bad ones included."""

    decoder: BigLittleDecoder
    policy: Policy
    source: dict[str, Any]
    asked: dict[str, Any]
    batch_size: int
    compare: bool
    _turn: bool = False

    def run(self, lines: Iterator[Line]) -> Iterator[Decoded]:
        """Every line in order."""
        # Wrong options should fail before the first line is waited for.
        self.decoder.generate([], self.policy, **self.source, **self.asked)
        prompter = self.decoder.prompter(**self.source)
        if self.compare:
            self._warm_up()
        batch: list[Decoded] = []
        for line in lines:
            item = Decoded(line, error=line.error)
            try:
                if item.error is None:
                    self.decoder.check(prompter.encode(line.text), **self.asked)
            except InputError as error:
                item.error = str(error)
            batch.append(item)
            if sum(item.error is None for item in batch) == self.batch_size:
                yield from self._decode(batch)
                batch = []
        yield from self._decode(batch)

    def _decode(self, batch: list[Decoded]) -> list[Decoded]:
        good = [item for item in batch if item.error is None]
        # In turn, so that neither side always goes first.
        self._turn = not self._turn
        for side in ("result", "alone") if self._turn else ("alone", "result"):
            if side == "alone" and not self.compare:
                continue
            policy = self.policy if side == "result" else "large"
            for item, result in zip(good, self._generate(good, policy), strict=True):
                setattr(item, side, result)
        return batch

    def _generate(self, items: list[Decoded], policy: str | Policy) -> list[Result]:
        texts = [item.line.text for item in items]
        return self.decoder.generate(texts, policy, batch_size=self.batch_size, **self.source, **self.asked)

    def _warm_up(self) -> None:
        """The first passes of a process are slow and would be charged to whoever goes first."""
        short = self.asked | {"max_new_tokens": 16}
        for policy in (self.policy, "large") * 2:
            self.decoder.generate("Guten Tag, das ist nur zum Aufwärmen.", policy, **self.source, **short)


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

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
