"""bild verify-server: a large model that judges what devices draft."""

from __future__ import annotations

from typing import Annotated

import typer

from bild.cli import pair_options as options
from bild.cli.serve import GUARD, KEY, LOOPBACK, SERVER, check_installed, log_requests, say
from bild.errors import InputError

SESSIONS = "Sessions"


def verify_server(
    large: options.Large = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", rich_help_panel=SERVER)] = 8001,
    max_rows: Annotated[int, typer.Option(help="Texts judged in one pass, 1….", rich_help_panel=SERVER)] = 32,
    max_cells: Annotated[
        int, typer.Option(help="Tokens there is room for: rows × (source + text).", rich_help_panel=SERVER)
    ] = 65536,
    wait: Annotated[
        float, typer.Option(help="How long a pass waits for others to share it, ms, 0….", rich_help_panel=SERVER)
    ] = 0.0,
    timeout: Annotated[float, typer.Option(help="Longest time of a request, s.", rich_help_panel=SERVER)] = 30,
    drain: Annotated[
        float, typer.Option(help="Time for open texts when told to stop, s.", rich_help_panel=SERVER)
    ] = 30,
    max_sessions: Annotated[int, typer.Option(help="Texts that may be open, 1….", rich_help_panel=SESSIONS)] = 1024,
    idle: Annotated[
        float,
        typer.Option(help="Silence after which a device has vanished and is forgotten, s.", rich_help_panel=SESSIONS),
    ] = 60,
    api_key_file: Annotated[
        str | None,
        typer.Option(help=f"File with one key a line; or one key in ${KEY}. Default: no key.", rich_help_panel=GUARD),
    ] = None,
) -> None:
    """Hold a large model that judges what small models elsewhere draft: bild generate --verifier URL.

    Only the large checkpoint is loaded, of a pair too. Rounds of many devices share a pass. Stops on SIGTERM or Ctrl-C:
    texts that are open go on until they end, within --drain; a second one stops it at once.
    """
    check_installed()
    for name, value in (("timeout", timeout), ("drain", drain)):
        if not value >= 0 or (name == "timeout" and value == 0):
            raise InputError(f"{name} is {value:g}; allowed is {'more than 0' if name == 'timeout' else '0 or more'}")
    from bild.edge.verification import Limits
    from bild.generation.pair import Pair, bundled_pair
    from bild.serving.plan import keys_of, name_of
    from bild.serving.server import Server, listen
    from bild.serving.settings import Settings
    from bild.serving.verifying import VerifyingService, build_verifying_app

    # All that may be wrong is looked at before anything is loaded.
    limits = Limits(max_rows, max_cells, max_sessions, idle, wait / 1e3)
    settings = Settings(model=name_of(pair, large), keys=keys_of(api_key_file), timeout_s=timeout)
    model = Pair.load(bundled_pair() if pair is None else pair).large if large is None else large
    listening = listen(host, port)
    decoder = options.load_decoder(
        large=model,
        small=None,
        pair=None,
        drafter="ngram",
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    log_requests("bild.serving", "bild.edge")
    if host not in LOOPBACK and not settings.keys:
        say(f"warning: everybody who can reach {host} can use this server; give it keys with --api-key-file")
    service = VerifyingService(decoder, limits, settings)
    service.engine.start()
    server = Server(service, drain, build_verifying_app(service))
    shown = host if ":" not in host else f"[{host}]"
    say(f"verifying for {settings.model} on http://{shown}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])
    if server.broken:
        raise typer.Exit(1)
