"""bild warmup: compile a pair for this machine, once, ahead of the first request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from bild.cli import pair_options as options

if TYPE_CHECKING:
    from bild.models.compiled.graph_files import GraphFile


def warmup(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    middle_window: options.MiddleWindow = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    list_graphs: Annotated[
        bool, typer.Option("--list", help="Print what is kept compiled, and compile nothing.")
    ] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all that is kept compiled, and compile nothing.")
    ] = False,
) -> None:
    """Compile a pair for this machine and keep the result: later runs with --runtime auto are then compiled."""
    from bild.errors import LoadError
    from bild.models.compiled import compiling, graph_files

    if clear or list_graphs:
        print(_cleared(graph_files.clear()) if clear else _listing(graph_files.kept()))
        return
    start = time.perf_counter()
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        middle=middle,
        middle_window=middle_window,
        drafter=drafter,
        dtype=dtype,
        device=device,
        runtime="static",
        trust_remote_code=trust_remote_code,
    )
    for model in decoder.parts:
        if not model.is_compiled:
            raise LoadError(f"{type(model.network).__name__} could not be compiled; it runs with --runtime eager")
    took, count = time.perf_counter() - start, compiling.compilations
    print(f"compiled {count} graphs in {took:.0f} s" if count else f"all compiled already; loaded in {took:.1f} s")
    print(f"kept in {graph_files.graph_folder()}")


def _listing(graphs: list[GraphFile]) -> str:
    """A line a graph, and their sum."""
    lines = [
        f"{graph.bytes / 1e6:10.1f} MB  {time.strftime('%Y-%m-%d', time.localtime(graph.used))}  {graph.name}"
        for graph in graphs
    ]
    return "\n".join([*lines, f"{sum(graph.bytes for graph in graphs) / 1e6:10.1f} MB in {len(graphs)} graphs"])


def _cleared(freed: int) -> str:
    return f"removed all that was kept compiled; {freed / 1e6:.1f} MB are free"
