"""bild serve: a pair over HTTP."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bild.cli import pair_options as options
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.serving.settings import Keys, Languages

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEY = "BILD_API_KEY"
SERVER, GUARD, API = "Server", "Guard", "API"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", rich_help_panel=SERVER)] = 8000,
    max_rows: Annotated[int, typer.Option(help="Texts decoded together, 1….", rich_help_panel=SERVER)] = 4,
    max_cells: Annotated[
        int, typer.Option(help="Tokens there is room for: rows × (source + text).", rich_help_panel=SERVER)
    ] = 65536,
    queue: Annotated[int, typer.Option(help="Requests that may wait, 1….", rich_help_panel=SERVER)] = 128,
    timeout: Annotated[float, typer.Option(help="Longest time of a request, s.", rich_help_panel=SERVER)] = 300,
    drain: Annotated[
        float, typer.Option(help="Time for accepted requests when told to stop, s.", rich_help_panel=SERVER)
    ] = 30,
    api_key_file: Annotated[
        str | None,
        typer.Option(help=f"File with one key a line; or one key in ${KEY}. Default: no key.", rich_help_panel=GUARD),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of pages that may ask from a browser; may be repeated.", rich_help_panel=GUARD),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="In /v1/models. Default: the pair's folder.", rich_help_panel=API)
    ] = None,
    translate: Annotated[
        list[str] | None,
        typer.Option(
            help="SOURCE:TARGET[=PREFIX] of /translate; may be repeated. Default: de:en for the bundled pair.",
            rich_help_panel=API,
        ),
    ] = None,
    metrics_prefix: Annotated[
        str, typer.Option(help="Of the names in /metrics; vllm: as boards for it expect.", rich_help_panel=API)
    ] = "bild",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Pass over unknown fields instead of refusing them.", rich_help_panel=API)
    ] = False,
) -> None:
    """Serve a pair over HTTP: the APIs of OpenAI and of LibreTranslate, many texts decoded together.

    Stops on SIGTERM or Ctrl-C: requests it has accepted are served first; a second one stops it at once. The exit
    code is 0, or 1 if the models broke down.
    """
    check_installed()
    for name, value in (("timeout", timeout), ("drain", drain)):
        if not value >= 0 or (name == "timeout" and value == 0):
            raise InputError(f"{name} is {value:g}; allowed is {'more than 0' if name == 'timeout' else '0 or more'}")
    from bild.engine import Limits
    from bild.serving.server import Server, listen
    from bild.serving.service import Service
    from bild.serving.settings import Settings

    # All that may be wrong is looked at before anything is loaded.
    limits = Limits(rows=max_rows, cells=max_cells, queue=queue)
    bundled = pair is None and large is None and small is None
    settings = Settings(
        model=name_of(pair, large) if model_name is None else model_name,
        languages=_languages(translate, bundled),
        keys=keys_of(api_key_file),
        timeout_s=timeout,
        cors=tuple(cors_origin or ()),
        metrics_prefix=metrics_prefix,
        lenient=lenient,
    )
    listening = listen(host, port)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        drafter=drafter,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
    )
    log_requests("bild.serving", "bild.engine")
    if host not in LOOPBACK and not settings.keys:
        say(f"warning: everybody who can reach {host} can use this server; give it keys with --api-key-file")
    service = Service(decoder, decoder.engine(limits), settings)
    service.engine.start()
    server = Server(service, drain)
    say(f"serving {settings.model} on http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])
    if server.broken:
        raise typer.Exit(1)


def check_installed() -> None:
    """Whether what servers are made of is there.

    Raises:
        InputError: it is not, and what to install.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}; pip install 'bild[serve]'")


def name_of(pair: str | None, large: str | None) -> str:
    """What a pair is called where nobody says."""
    if pair is None and large is None:
        return "de-en"
    named = Path(large if pair is None else pair)  # type: ignore[arg-type]
    return (named.parent if named.suffix == ".json" else named).name or "bild"


def _languages(translate: list[str] | None, bundled: bool) -> tuple[Languages, ...]:
    from bild.serving.settings import Languages

    if not translate:
        return (Languages("de", "en"),) if bundled else ()
    return tuple(Languages.parse(each) for each in translate)


def keys_of(place: str | None) -> Keys:
    """Who may ask: by a file, or by the environment."""
    from bild.serving.settings import Keys

    if place is not None:
        return Keys.read(place)
    given = os.environ.get(KEY)
    if given == "":
        raise InputError(f"${KEY} is empty; give it a key, or unset it")
    return Keys() if given is None else Keys.of([given])


def log_requests(*names: str) -> None:
    """A line a request on stderr, from these loggers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def say(text: str) -> None:
    """To whoever started the server."""
    print(text, file=sys.stderr, flush=True)
