"""bild serve: a pair over HTTP."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bild.cli import pair_options as options
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder
    from bild.serving.plan import Plan

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEY = "BILD_API_KEY"
SERVER, GUARD, API, CLUSTER = "Server", "Guard", "API", "Ray"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    middle_window: options.MiddleWindow = None,
    drafter: options.Drafter = None,
    reward: options.Reward = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", rich_help_panel=SERVER)] = 8000,
    max_rows: Annotated[int, typer.Option(help="Texts decoded together, 1….", rich_help_panel=SERVER)] = 4,
    lanes: Annotated[
        int,
        typer.Option(
            help="Threads that decode side by side, 1…; cores and rows are shared out.", rich_help_panel=SERVER
        ),
    ] = 1,
    max_cells: Annotated[
        int, typer.Option(help="Tokens there is room for: rows × (source + text).", rich_help_panel=SERVER)
    ] = 65536,
    queue: Annotated[int, typer.Option(help="Requests that may wait, 1….", rich_help_panel=SERVER)] = 128,
    queue_tokens: Annotated[
        int, typer.Option(help="Tokens of their sources and prompts, 1….", rich_help_panel=SERVER)
    ] = 1 << 18,
    prefix_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of texts that ended, kept for prompts that begin alike, 0…. Decoder-only.",
            rich_help_panel=SERVER,
        ),
    ] = 16384,
    pace: Annotated[
        str,
        typer.Option(
            help="How long drafts may be: fixed: as policies say; goodput: as pays at the load there is; or by rows, "
            "as in table:1=10,4=3,8=0. Other lengths change the texts of policies that are not lossless.",
            rich_help_panel=SERVER,
        ),
    ] = "fixed",
    timeout: Annotated[float, typer.Option(help="Longest time of a request, s.", rich_help_panel=SERVER)] = 300,
    drain: Annotated[
        float, typer.Option(help="Time for accepted requests when told to stop, s.", rich_help_panel=SERVER)
    ] = 30,
    api_key_file: Annotated[
        str | None,
        typer.Option(help=f"File with one key a line; or one key in ${KEY}. Default: no key.", rich_help_panel=GUARD),
    ] = None,
    key_requests: Annotated[
        int | None, typer.Option(help="Requests of one key at a time, 1…. Default: any number.", rich_help_panel=GUARD)
    ] = None,
    key_rate: Annotated[
        int | None,
        typer.Option(help="The same in a minute, 1…. Default: any number.", rich_help_panel=GUARD),
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
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve on Ray: replicas, each with an engine.", rich_help_panel=CLUSTER)
    ] = False,
    replicas: Annotated[
        str | None,
        typer.Option(help="How many, as in 2; or from 1 to 4 by the load: 1:4. Default: 1.", rich_help_panel=CLUSTER),
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Pass over unknown fields instead of refusing them.", rich_help_panel=API)
    ] = False,
) -> None:
    """Serve a pair over HTTP: the APIs of OpenAI and of LibreTranslate, many texts decoded together.

    Stops on SIGTERM or Ctrl-C: requests it has accepted are served first; a second one stops it at once. The exit
    code is 0, or 1 if the models broke down.
    """
    check_installed()
    if not host.strip():
        raise InputError("host is empty; give an address or a name, 0.0.0.0 for all of this machine's")
    if not drain >= 0:
        raise InputError(f"drain is {drain:g}; allowed is 0 or more")
    if replicas is not None and not ray:
        raise InputError("replicas are started by Ray; give --ray, too, or leave --replicas out")
    from bild.serving.plan import plan

    # All that may be wrong is looked at before anything is loaded.
    planned = plan(
        pair=pair,
        large=large,
        small=small,
        middle=middle,
        middle_window=middle_window,
        drafter=drafter,
        reward=reward,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        max_rows=max_rows,
        lanes=lanes,
        max_cells=max_cells,
        queue=queue,
        queue_tokens=queue_tokens,
        prefix_tokens=prefix_tokens,
        pace=pace,
        timeout=timeout,
        api_key_file=api_key_file,
        key_requests=key_requests,
        key_rate=key_rate,
        cors_origin=[] if cors_origin is None else cors_origin,
        model_name=model_name,
        translate=[] if translate is None else translate,
        metrics_prefix=metrics_prefix,
        lenient=lenient,
    )
    if host not in LOOPBACK and not planned.settings.keys:
        say(f"warning: everybody who can reach {host} can use this server; give it keys with --api-key-file")
    if ray:
        check_installed(("ray",), "ray")
        if not port:
            raise InputError("port is 0, and Ray listens on the one it is told; name it with --port")
        from bild.serving.ray_cluster import serve_on_ray

        serve_on_ray(planned, host, port, "1" if replicas is None else replicas, drain, say=say)
    elif _serve(planned, host, port, drain):
        raise typer.Exit(1)


def _serve(planned: Plan, host: str, port: int, drain: float) -> bool:
    """Serve in this process until told to stop; whether the models broke down."""
    from bild.serving.server import Server, listen

    listening = listen(host, port)
    options.quieten()
    options.share_cores(planned.lanes)
    try:
        service = planned.service()
    except BaseException:
        listening.close()
        raise
    log_requests("bild.serving", "bild.engine")
    service.engine.start()
    server = Server(service, drain)
    named = host if ":" not in host else f"[{host}]"
    say(f"serving {planned.settings.model} on http://{named}:{listening.getsockname()[1]}")
    if note := uncompiled(service.decoder, planned.models.get("runtime", "auto")):
        say(note)
    server.run(sockets=[listening])
    return server.broken


def uncompiled(decoder: BigLittleDecoder, runtime: str) -> str | None:
    """What is said where the pair runs several times slower than it could, and nobody asked for that."""
    if runtime != "auto" or decoder.large.is_compiled or decoder.large.device.type != "cpu":
        return None
    import torch

    threads = torch.get_num_threads()
    return (
        f"note: the pair runs uncompiled; OMP_NUM_THREADS={threads} bild warmup, with the same pair and dtype, makes "
        "it several times as fast"
    )


def check_installed(packages: Sequence[str] = NEEDED, extra: str = "serve") -> None:
    """Whether what servers are made of is there.

    Raises:
        InputError: it is not, and what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}; pip install 'bild[{extra}]'")


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
