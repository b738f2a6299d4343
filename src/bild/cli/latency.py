"""bild latency: how long a request takes under load, as two constants, and which window is best at which rate."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli.streams import print_json
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.tuning.latency import LatencyModel, Load, Point

LOGS, SWEEP = "Logs", "Sweep"


def latency(
    log: Annotated[
        Path | None, typer.Option(help="Log of bild serve: fit it, and decode nothing.", rich_help_panel=LOGS)
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Texts that bild generate --json has written one at a time: what one stream is charged for.",
            rich_help_panel=LOGS,
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help=f"Texts to send: {examples.FILES}.", rich_help_panel=SWEEP)
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Requests a second, one after the other, above 0.", rich_help_panel=SWEEP)
    ] = "1,2,4,8",
    windows: Annotated[
        str, typer.Option(help="Drafted tokens a round, 0…; 0: the large model alone.", rich_help_panel=SWEEP)
    ] = "0,2,4,8",
    requests: Annotated[int, typer.Option(help="At each rate and window, 2…", rich_help_panel=SWEEP)] = 40,
    rows: Annotated[int, typer.Option(help="Texts decoded together, 1…", rich_help_panel=SWEEP)] = 4,
    source_column: examples.SourceColumn = "source",
    split: examples.Split = "validation",
    prefix: examples.Prefix = "",
    max_new_tokens: examples.MaxNewTokens = 128,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "static",
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON line at the end.")] = False,
) -> None:
    """Fit latency to load: L = C1 + C2 × requests in flight, and so L = C1 / (1 − rate × C2).

    With --data real requests are sent to an engine in this process at each rate, for each window; with --log or --runs
    what was logged before is fitted.
    """
    given = [name for name, value in (("--log", log), ("--runs", runs), ("--data", data)) if value is not None]
    if len(given) != 1:
        raise InputError(f"give one of --log, --runs and --data, got {', '.join(given) if given else 'none'}")
    if log is not None:
        values = _of_log(log)
    elif runs is not None:
        values = _of_runs(runs)
    else:
        assert data is not None
        plan = {"rates": _numbers("rates", rates, float), "windows": _numbers("windows", windows, int)}
        if requests < 2 or rows < 1:
            raise InputError(f"requests is {requests} and rows {rows}; allowed are 2 or more, and 1 or more")
        in_range = all(0 < rate < math.inf for rate in plan["rates"]) and min(plan["windows"]) >= 0
        if not in_range or len(set(plan["rates"])) < 2:
            raise InputError(f"rates are {rates} and windows {windows}; allowed are two rates above 0, and 0 or more")
        texts = _texts(data, split, source_column, requests, prefix)
        decoder = options.load_decoder(
            large=large,
            small=small,
            pair=pair,
            drafter=drafter,
            dtype=dtype,
            device=device,
            runtime=runtime,
            trust_remote_code=trust_remote_code,
        )
        values = _of_sweep(decoder, texts, plan, rows, max_new_tokens)
    if as_json:
        print_json(values)


def _numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{name} are {text!r}; allowed are {what}, as in 1,2,4") from None


def _texts(data: list[str], split: str, column: str, count: int, prefix: str) -> list[str]:
    from bild.data import read_sets

    sets = read_sets(data, None, split=split, limit=count, source_column=column)
    sources = [prefix + example.source for each in sets.values() for example in each.examples]
    if not sources:
        raise InputError("there are no texts to send; give at least one")
    return [sources[at % len(sources)] for at in range(count)]


def _of_log(file: Path) -> dict[str, Any]:
    from bild.tuning.latency import LatencyModel, read_server_log, stretches

    points = stretches(read_server_log(file))
    model = LatencyModel.fit(points)
    _show_points(points, model)
    _show_model("", model, points)
    return {"alone_s": model.alone, "neighbour_s": model.neighbour, "explained": model.explained(points)}


def _of_runs(file: Path) -> dict[str, Any]:
    from bild.tuning.latency import read_runs, single_stream

    counts, seconds = read_runs(file)
    costs, explained = single_stream(counts, seconds)
    for name, ms in costs.to_dict().items():
        print(f"{ms:10.3f} ms  {name}")
    print(f"{explained:10.1%}     of the variance of {len(counts)} texts explained")
    return {"ms": costs.to_dict(), "explained": explained, "texts": len(counts)}


def _of_sweep(decoder: Any, texts: list[str], plan: dict[str, list[Any]], rows: int, longest: int) -> dict[str, Any]:
    from bild.decoding import ExactMatch, FixedWindow, Greedy, Policy
    from bild.tuning.latency import LatencyModel, load

    jobs = decoder.jobs(texts, max_new_tokens=longest)
    models: dict[int, LatencyModel] = {}
    yields: dict[int, float] = {}
    values: dict[str, Any] = {"windows": {}}
    for window in plan["windows"]:
        policy = Policy.large()
        if window:
            policy = Policy(hand_over=FixedWindow(), acceptance=ExactMatch(), max_draft_tokens=window, verify_end=True)
        rules = decoder.rules(policy, Greedy())
        decoder.results(jobs[:2], policy, Greedy())
        loads: list[Load] = []
        for rate in plan["rates"]:
            print(f"window {window}, {rate:g} requests a second", file=sys.stderr, flush=True)
            loads.append(load(decoder, jobs, rules, rate, rows=rows))
        points = [each.point for each in loads]
        models[window] = model = LatencyModel.fit(points)
        tokens = sum(each.stats.num_tokens for each in loads)
        yields[window] = tokens / max(1, sum(each.stats.num_large_steps for each in loads))
        print(f"window {window}: {yields[window]:.2f} tokens a large pass")
        _show_points(points, model)
        _show_model("  ", model, points)
        values["windows"][window] = {
            "alone_s": model.alone,
            "neighbour_s": model.neighbour,
            "explained": model.explained(points),
            "points": [{"rate": point.rate, "latency_s": point.latency} for point in points],
        }
    values |= _show_choice(models, yields, plan["rates"])
    return values


def _show_points(points: list[Point], model: LatencyModel) -> None:
    print("  rate a second   ms measured   ms fitted   in flight")
    for point in sorted(points, key=lambda each: each.rate):
        fitted = 1e3 * (model.alone + model.neighbour * point.in_flight)
        print(f"  {point.rate:13.2f}   {1e3 * point.latency:11.1f}   {fitted:9.1f}   {point.in_flight:9.2f}")


def _show_model(indent: str, model: LatencyModel, points: list[Point]) -> None:
    print(
        f"{indent}C1 {1e3 * model.alone:.1f} ms, C2 {1e3 * model.neighbour:.1f} ms a request in flight: at most "
        f"{model.capacity:.1f} requests a second; {model.explained(points):.1%} of the variance explained"
    )


def _show_choice(models: dict[int, LatencyModel], yields: dict[int, float], rates: list[float]) -> dict[str, Any]:
    from bild.tuning.latency import Parts, best_window, stops_paying

    best = {rate: best_window(models, rate) for rate in rates}
    for rate, window in best.items():
        print(f"best window at {rate:g} requests a second: {window}, {1e3 * models[window].at(rate):.1f} ms by the fit")
    values: dict[str, Any] = {"best_window": {str(rate): window for rate, window in best.items()}}
    if 0 in models and len(models) > 1:
        ends = stops_paying(models)
        print(
            "speculation pays at any rate" if ends is None else f"speculation pays below {ends:.2f} requests a second"
        )
        values["pays_below"] = ends
    if len(models) >= 3:
        for name, of in (
            ("C1", {w: m.alone for w, m in models.items()}),
            ("C2", {w: m.neighbour for w, m in models.items()}),
        ):
            parts = Parts.fit(of, yields)
            ms = [1e3 * each for each in (parts.prefill, parts.verify, parts.draft)]
            print(f"{name}: prefill {ms[0]:.2f} ms, verification {ms[1]:.2f} ms, a drafted token {ms[2]:.2f} ms")
            values[name] = {"prefill_s": parts.prefill, "verify_s": parts.verify, "draft_s": parts.draft}
    return values
