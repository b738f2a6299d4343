"""What the command line shows beside the text: who wrote what, counts, and a comparison."""

from __future__ import annotations

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from bild.decoding import Stats
from bild.generation import Result
from bild.generation.trace import trace as pieces_of

STYLES = {
    "small": "green",
    "large": "bold red",
    "ngram": "cyan",
    "replay": "blue",
    "middle": "yellow",
    "rolled_back": "strike dim",
}
MARKS = {"small": ("", ""), "large": ("[", "]"), "rolled_back": ("~", "~")}
OTHER_STYLE, OTHER_MARKS = "magenta", ("{", "}")
"""Of drafters beside the small model, where none is given above."""


def trace(result: Result, tokenizer: PreTrainedTokenizerBase | None) -> Text:
    """The paper's Figure 9: tokens coloured by their writer, rolled-back drafts struck through.

    Without colours, the large model's tokens stand in [brackets], those that were looked up, or come from another
    drafter than the small model, in {braces}, and rolled-back ones between ~tildes~.
    """
    line = Text()
    for piece in pieces_of(result, tokenizer):
        _mark(line, piece.text, *MARKS.get(piece.kind, OTHER_MARKS), STYLES.get(piece.kind, OTHER_STYLE))
    return line


def _mark(line: Text, text: str, before: str, after: str, style: str) -> None:
    """Append a marked piece, its leading space outside the marks."""
    bare = text.lstrip(" ") or text
    line.append(" " * (len(text) - len(bare)))
    line.append(f"{before}{bare}{after}", style=style)


def counts(stats: Stats) -> str:
    """One line of statistics."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    others = {name: n for name, n in stats.num_tokens_by_writer.items() if name not in ("small", "large")}
    return (
        f"{stats.num_tokens} tokens · {percent(stats.large_share)} by large · "
        + "".join(f"{percent(count / stats.num_tokens)} by {name} · " for name, count in others.items())
        + f"{_steps(stats)} steps · "
        f"{stats.num_rounds} rounds, {stats.num_rollbacks} rollbacks · "
        f"{percent(stats.acceptance_rate)} of drafts accepted"
    )


def _steps(stats: Stats) -> str:
    between = {name: n for name, n in stats.num_steps_by_model.items() if name not in ("small", "large")}
    named = [f"{stats.num_large_steps} large", *(f"{n} {name}" for name, n in between.items())]
    return f"{', '.join(named)} and {stats.num_small_steps} small"


def times(result: Result) -> str:
    """One line of times."""
    return (
        f"{result.total_s * 1e3:.1f} ms · first after {result.ttft_s * 1e3:.1f} ms · "
        f"{result.seconds_per_token * 1e3:.2f} ms a token"
    )
