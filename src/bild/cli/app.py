"""One program, one thin file a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from bild import __version__
from bild.cli.align import align
from bild.cli.chat import chat
from bild.cli.draft import draft
from bild.cli.evaluate import evaluate
from bild.cli.generate import generate
from bild.cli.info import info
from bild.cli.latency import latency
from bild.cli.plan import plan
from bild.cli.reproduce import reproduce
from bild.cli.retranslate import retranslate
from bild.cli.serve import serve
from bild.cli.simulate import simulate
from bild.cli.streams import finish, prepare_streams
from bild.cli.train import train
from bild.cli.train_ngram import train_ngram
from bild.cli.tune import tune
from bild.cli.verify_server import verify_server
from bild.cli.warmup import warmup
from bild.errors import BildError, one_line, reason

app = typer.Typer(
    help="Big Little Decoder: a small and a large language model decode together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(verify_server)
app.command()(evaluate)
app.command()(train)
app.command()(align)
app.command()(draft)
app.command()(train_ngram)
app.command()(info)
app.command()(tune)
app.command()(plan)
app.command()(latency)
app.command()(reproduce)
app.command()(warmup)
app.command()(retranslate)
app.command()(simulate)

INTERRUPTED = 128 + signal.SIGINT
# typer carries its own copy of click since 0.27 and used the real one before; this is the base of either.
UsageError: Any = typer.BadParameter.__bases__[0]


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
    prepare_streams()
    code = _run(lambda: app(standalone_mode=False) or 0)
    # Where stdout was the trouble, it still is.
    ended = _run(finish) if code == 0 else _quietly(finish)
    sys.exit(code if code else ended)


def _run(work: Callable[[], int]) -> int:
    try:
        return work()
    except UsageError as error:
        return _fail(error.format_message())
    except BildError as error:
        return _fail(one_line(error))
    except (BrokenPipeError, SystemExit):
        # Whoever read our results has seen enough; typer and rich make an exit of that.
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as error:
        return _fail(f"cannot write {'stdout' if error.filename is None else error.filename}: {reason(error)}")
    except UnicodeError as error:
        return _fail(f"a text or file name holds characters that cannot be written ({one_line(error)})")


def _quietly(work: Callable[[], int]) -> int:
    with suppress(BildError, OSError):
        return work()
    return 0


def _fail(message: str) -> int:
    if not message.strip():
        # The help says it: no command was given.
        return 2
    # A stderr that cannot be written leaves the exit code to say it.
    with suppress(OSError, ValueError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2
