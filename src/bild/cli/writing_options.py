"""Options of commands that write texts: how tokens are picked, and what a chat template is told as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bild.errors import InputError

TEXT, OUTPUT = "Text", "Output"

DoSample = Annotated[
    bool, typer.Option("--do-sample", help="Draw tokens instead of taking the most likely.", rich_help_panel=TEXT)
]
Temperature = Annotated[float | None, typer.Option(help="Above 0.", rich_help_panel=TEXT)]
TopK = Annotated[int | None, typer.Option(help="0 = all.", rich_help_panel=TEXT)]
TopP = Annotated[float | None, typer.Option(help="0…1.", rich_help_panel=TEXT)]
MinP = Annotated[float | None, typer.Option(help="0…1.", rich_help_panel=TEXT)]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 0; 1 = none.", rich_help_panel=TEXT)]
Beams = Annotated[
    int | None,
    typer.Option(
        help="Hypotheses of a beam search, 2…: of the large model, or by --policy exact with the small one's drafts. "
        "With --do-sample it is drawn.",
        rich_help_panel=TEXT,
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(help="Of a beam search; above 0 favours long texts. Default: 1.", rich_help_panel=TEXT),
]
EarlyStopping = Annotated[
    str | None,
    typer.Option(help="When a beam search ends: yes, no or never. Default: no.", rich_help_panel=TEXT),
]
NoRepeatNgramSize = Annotated[int | None, typer.Option(help="0 = off.", rich_help_panel=TEXT)]


def early_stopping(text: str | None) -> bool | str | None:
    """When a beam search ends, as it is written on the command line."""
    known: dict[str | None, bool | str | None] = {None: None, "yes": True, "no": False, "never": "never"}
    if text not in known:
        raise InputError(f"--early-stopping is {text!r}; allowed are yes, no and never")
    return known[text]


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """An option that is a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{option} is {text[:60]!r}; allowed is a JSON object, as in '{{\"enable_thinking\": false}}'")
    return value
