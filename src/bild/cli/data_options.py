"""Options about examples that several commands share, and how the sets are read."""

from __future__ import annotations

from typing import Annotated

import typer

from bild.errors import InputError

PANEL = "Data"

FILES = ".jsonl, .csv, .tsv or text file, also .gz, or a Hugging Face dataset NAME[:CONFIG]; may be repeated"
Data = Annotated[list[str], typer.Option(help=f"{FILES}.", rich_help_panel=PANEL)]
OptionalData = Annotated[list[str] | None, typer.Option(help=f"{FILES}.", rich_help_panel=PANEL)]
DevSets = Annotated[
    list[str],
    typer.Option(
        help=f"Dev set with references, or prompts alone: {FILES}: the budget holds on each.", rich_help_panel=PANEL
    ),
]
TestSets = Annotated[
    list[str],
    typer.Option(help=f"Test set with references: {FILES}: each is reported by itself.", rich_help_panel=PANEL),
]
TargetData = Annotated[
    list[str] | None,
    typer.Option(
        help="References (for training: targets) of a text file, line by line; one for each --data.",
        rich_help_panel=PANEL,
    ),
]
SourceColumn = Annotated[
    str, typer.Option(help="Column of the text to decode; dots reach into nested columns.", rich_help_panel=PANEL)
]
TargetColumn = Annotated[
    str, typer.Option(help="Column of the reference, a text or a list of texts.", rich_help_panel=PANEL)
]
Split = Annotated[str, typer.Option(help="Of a Hugging Face dataset.", rich_help_panel=PANEL)]
Limit = Annotated[int | None, typer.Option(help="First examples of each set, 1…", rich_help_panel=PANEL)]
Prefix = Annotated[str, typer.Option(help='Put before every source, as T5\'s "summarize: ".', rich_help_panel=PANEL)]
BleuTokenizer = Annotated[
    str,
    typer.Option(
        help="How BLEU finds words, as sacrebleu names it: 13a (by spaces), zh, ja-mecab, ko-mecab, char, flores200, …",
        rich_help_panel=PANEL,
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest text, 1…")]
MetricsTask = Annotated[
    str, typer.Option(help="translation, summarization, completion or chat: decides which metrics come first.")
]


def budget_metric(task: str, metric: str | None) -> str:
    """The metric given, else the one of the task.

    Raises:
        InputError: an unknown task.
    """
    from bild.data.quality import BUDGETED

    if task not in BUDGETED:
        raise InputError(f"task is {task!r}; allowed are {', '.join(BUDGETED)}")
    return BUDGETED[task] if metric is None else metric
