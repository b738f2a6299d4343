"""Options that the commands which train share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bild.cli.data_options import PANEL as DATA
from bild.cli.pair_options import quieten

START, DEV, RECIPE, RUN = "Start", "Dev score", "Recipe", "Run"
MOST_THREADS = 1024
"""More than any processor has; of billions torch makes a traceback."""

Out = Annotated[Path, typer.Option(help="Folder of the run and of its checkpoint.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Sources are a user's turns. Default: if a decoder-only model has a chat template.",
        rich_help_panel=DATA,
    ),
]
MaxSourceTokens = Annotated[
    int | None,
    typer.Option(help="Leave out longer sources, 1… Default: what fits.", rich_help_panel=DATA),
]
MaxTargetTokens = Annotated[
    int | None,
    typer.Option(help="Leave out longer targets, 1… Default: what fits.", rich_help_panel=DATA),
]
Dev = Annotated[
    list[str] | None, typer.Option(help="Set to score the network on; may be repeated.", rich_help_panel=DEV)
]
DevMetric = Annotated[
    str, typer.Option(help="bleu, bleu:TOKENIZER, chrf, rouge1, rouge2, rougeL or exact_match.", rich_help_panel=DEV)
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps, 1… Default: a twentieth of all, at least 100; with --max-minutes 500.", rich_help_panel=DEV
    ),
]
Patience = Annotated[
    int | None, typer.Option(help="Stop after this many scores without a new best, 1…", rich_help_panel=DEV)
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe", help="fast: Muon, batches of like length; paper: Adafactor, constant rate.", rich_help_panel=RECIPE
    ),
]
MaxSteps = Annotated[int | None, typer.Option(help="Most optimizer steps, 1…", rich_help_panel=RECIPE)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data, 1… Default: 5.", rich_help_panel=RECIPE)]
MaxMinutes = Annotated[
    float | None,
    typer.Option(help="Time of the run, above 0; the learning rate falls accordingly.", rich_help_panel=RECIPE),
]
BatchTokens = Annotated[
    int | None, typer.Option(help="Padded positions a batch, 1… Default: 3600.", rich_help_panel=RECIPE)
]
BatchSize = Annotated[int | None, typer.Option(help="Examples a batch instead, 1…", rich_help_panel=RECIPE)]
Lr = Annotated[
    float | None,
    typer.Option(help="Peak learning rate. Default: 1e-3 from nothing, 3e-4 otherwise.", rich_help_panel=RECIPE),
]
WarmupSteps = Annotated[
    int | None, typer.Option(help="0… Default: a twentieth of all, at most 500.", rich_help_panel=RECIPE)
]
LabelSmoothing = Annotated[
    float | None, typer.Option(help="0…1, default 0. Lowers confidence.", rich_help_panel=RECIPE)
]
Dropout = Annotated[float | None, typer.Option(help="0…1, default 0. A third of a CPU's step.", rich_help_panel=RECIPE)]
RDrop = Annotated[
    float | None,
    typer.Option(
        "--r-drop",
        help="0…, default 0. Two passes with different dropout are to agree; for little data.",
        rich_help_panel=RECIPE,
    ),
]
Trains = Annotated[
    str | None,
    typer.Option(
        help="What learns: all, the default, or decoder: an encoder that is the large model's stays so, which then "
        "encodes for both.",
        rich_help_panel=RECIPE,
    ),
]
Seed = Annotated[int, typer.Option(help="Of weights, order and dropout.", rich_help_panel=RECIPE)]
Dtype = Annotated[str, typer.Option(help="Of matrix products: auto, float32 or bfloat16.", rich_help_panel=RUN)]
SaveDtype = Annotated[
    str, typer.Option(help="Of the result. auto: as the checkpoint came, else float32.", rich_help_panel=RUN)
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the layers. Default: in long runs.", rich_help_panel=RUN),
]
Threads = Annotated[int | None, typer.Option(help="Of the processor, 1… Default: all cores.", rich_help_panel=RUN)]
LogEvery = Annotated[int, typer.Option(help="Steps between lines of progress, 1…", rich_help_panel=RUN)]
SaveMinutes = Annotated[float, typer.Option(help="Between states a killed run goes on from, 0…", rich_help_panel=RUN)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete an earlier run in OUT.", rich_help_panel=RUN)]


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command as plain JSON values, those not given left out."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    return {name: value for name, value in plain.items() if value is not None}


def fields_of(kind: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that are fields of a dataclass."""
    names = {field.name for field in fields(kind)} - {"arguments"}
    return {name: value for name, value in arguments.items() if name in names}


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say what an interrupted run can do."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on where it stopped ({out})", file=sys.stderr)
        raise


def prepare(threads: int | None) -> None:
    """Settle threads, and silence other libraries.

    Raises:
        InputError: not a number of threads.
    """
    from bild.errors import InputError, check_count

    quieten()
    import torch

    if threads is not None:
        check_count("threads", threads)
        if threads > MOST_THREADS:
            raise InputError(f"threads is {threads}; allowed is 1 to {MOST_THREADS}")
        torch.set_num_threads(threads)
