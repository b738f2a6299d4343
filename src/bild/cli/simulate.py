"""bild simulate: what a network would cost, over acceptance that was recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bild.cli import pair_options as options
from bild.cli.inputs import read_texts
from bild.cli.streams import check_file, print_json, print_line
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.edge.costs import Costs

RECORDING, COSTS, OUTPUT = "Recording", "Costs", "Output"


def simulate(
    system: Annotated[
        str,
        typer.Argument(
            help="edge-network (one machine drafts, one verifies), fleet (devices, links, windows by controller), "
            "devices (how many one verifier serves) or shards (a large model on several nodes).",
            show_default=False,
        ),
    ],
    recording: Annotated[
        Path | None, typer.Option(help="File that --save wrote: no model is loaded.", rich_help_panel=RECORDING)
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", help="File with one text a line to record; - for stdin.", rich_help_panel=RECORDING
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Where to keep the recording.", rich_help_panel=RECORDING)] = None,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure what passes cost here, with the pair.", rich_help_panel=COSTS)
    ] = False,
    draft_ms: Annotated[
        float | None, typer.Option(help="A drafted token, ms. Default: 0.26.", rich_help_panel=COSTS)
    ] = None,
    pass_ms: Annotated[
        float | None, typer.Option(help="A pass of the large model, ms. Default: 0.86.", rich_help_panel=COSTS)
    ] = None,
    row_ms: Annotated[
        float | None, typer.Option(help="Each text that shares it, ms. Default: 0.", rich_help_panel=COSTS)
    ] = None,
    token_ms: Annotated[
        float | None, typer.Option(help="Each token it reads, ms. Default: 0.17.", rich_help_panel=COSTS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, routes and jitter.", rich_help_panel=COSTS)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Simulate related systems: time is made up by costs and a link, what is accepted was recorded.

    Which drafted tokens stay comes from the pair (exact rule, greedy), by --input, or from a file, by --recording.
    Every figure is simulated, and says so.
    """
    from bild.edge.recording import Recording
    from bild.edge.tables import SYSTEMS, simulated
    from bild.generation.recording import measured_costs, recorded

    if system not in SYSTEMS:
        raise InputError(f"system is {system!r}; allowed are {', '.join(SYSTEMS)}")
    if (recording is None) == (input is None):
        raise InputError("name either what to record (--input FILE) or a recording (--recording FILE)")
    given = (draft_ms, pass_ms, row_ms, token_ms)
    if measure and any(each is not None for each in given):
        raise InputError("costs are both measured and given; leave --measure or the numbers out")
    costs = _costs(*given)
    if save is not None:
        check_file("save", save)
    known = None if recording is None else Recording.load(recording)
    texts = None if input is None else read_texts(input, "to record")
    if texts is not None or measure:
        decoder = options.load_decoder(
            large=large,
            small=small,
            pair=pair,
            dtype=dtype,
            device=device,
            runtime=runtime,
            trust_remote_code=trust_remote_code,
        )
        known = recorded(decoder, texts) if texts is not None else known
        costs = measured_costs(decoder) if measure else costs
    assert known is not None
    if save is not None:
        known.save(save)
    table = simulated(system, known, costs, seed)
    if as_json:
        print_json(table.to_dict())
        return
    print_line(table.markdown())
    told = costs.to_dict()
    typer.echo(f"  {known.told}; {len(known.texts)} texts, α {known.alpha:.3f}; costs {told}", err=True)


def _costs(draft_ms: float | None, pass_ms: float | None, row_ms: float | None, token_ms: float | None) -> Costs:
    from bild.edge.costs import Costs, PassCost

    default = Costs()
    seconds = [None if each is None else each / 1e3 for each in (draft_ms, pass_ms, row_ms, token_ms)]
    if all(each is None for each in seconds):
        return default
    usual = (default.draft_s, default.verify.base_s, default.verify.row_s, default.verify.token_s)
    draft, base, row, token = (own if each is None else each for own, each in zip(usual, seconds, strict=True))
    if not 0 <= draft < math.inf:
        raise InputError(f"draft-ms is {draft_ms}; allowed is 0 or more")
    if not base + row + token > 0:
        raise InputError("pass-ms, row-ms and token-ms are all 0; give one of them above 0")
    return Costs(draft, PassCost(base, row, token), "given on the command line")
