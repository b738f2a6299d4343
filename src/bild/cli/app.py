"""One program, one thin file a command."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from bild import __version__
from bild.cli.align import align
from bild.cli.evaluate import evaluate
from bild.cli.generate import generate
from bild.cli.info import info
from bild.cli.reproduce import reproduce
from bild.cli.train import train
from bild.cli.tune import tune
from bild.cli.warmup import warmup
from bild.errors import BildError

app = typer.Typer(
    help="Big Little Decoder: a small and a large language model decode together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(evaluate)
app.command()(train)
app.command()(align)
app.command()(info)
app.command()(tune)
app.command()(reproduce)
app.command()(warmup)

INTERRUPTED = 128 + signal.SIGINT
# typer carries its own copy of click since 0.27 and used the real one before; this is the base of either.
UsageError = typer.BadParameter.__bases__[0]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bild {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the program: exit code 0, or 2 after a one-line error."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        sys.exit(_fail(error.format_message()))
    except BildError as error:
        sys.exit(_fail(str(error)))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
