"""bild plan: which models to chain, and how many tokens each asks for, predicted and measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli.streams import print_json
from bild.errors import check_count

if TYPE_CHECKING:
    from bild.tuning.plan import Plan

DEFAULT_TEXTS = 20


def plan(
    data: examples.Data,
    source_column: examples.SourceColumn = "source",
    target_column: examples.TargetColumn = "target",
    split: examples.Split = "validation",
    limit: Annotated[int, typer.Option(help="First texts of each set, 1…", rich_help_panel=examples.PANEL)] = (
        DEFAULT_TEXTS
    ),
    prefix: examples.Prefix = "",
    max_new_tokens: examples.MaxNewTokens = 128,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "static",
    trust_remote_code: options.TrustRemoteCode = False,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Plan for rejection sampling at temperature 1, not for greedy texts.")
    ] = False,
    measured: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Run each plan, and show what it really takes.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON line at the end.")] = False,
) -> None:
    """Choose the models of a cascade and their windows, by hierarchical speculative decoding's two measurements.

    How often each model would keep a token of each smaller one, and what a pass of each costs here, give the cost of a
    token for every chain of them; the best of one, two and three models are shown, with what they really take beside.
    """
    from bild.data import read_sets
    from bild.tuning import plan as planning

    check_count("limit", limit)
    columns = {"source_column": source_column, "target_column": target_column}
    sets = read_sets(data, None, split=split, limit=limit, **columns)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        middle=middle,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    texts = [prefix + example.source for each in sets.values() for example in each.examples]
    jobs = decoder.jobs(texts, max_new_tokens=max_new_tokens)
    print(f"reading {len(texts)} texts with each model", file=sys.stderr, flush=True)
    kept = planning.agreement(decoder, jobs, draws=do_sample)
    costs = planning.pass_costs(decoder, jobs)
    levels = list(planning.models_of(decoder))
    plans = planning.best_plans(levels, costs, kept)
    took = {
        count: planning.measure(decoder, each, jobs, draws=do_sample) if measured else None
        for count, each in plans.items()
    }
    for judge, drafter in kept:
        if levels.index(judge) > levels.index(drafter):
            print(f"{judge} would keep {kept[judge, drafter]:.1%} of what {drafter} writes")
    for name, cost in costs.items():
        print(f"a pass of {name}: {1e3 * cost.fixed:.3f} ms and {1e3 * cost.token:.3f} ms a token")
    print()
    for line in _table(plans, took):
        print(line)
    if as_json:
        print_json(_plain(plans, took, kept, costs))


def _table(plans: dict[int, Plan], took: dict[int, float | None]) -> list[str]:
    """A line a plan; speedups are over the large model alone, predicted over predicted and measured over measured."""
    lines = ["models  predicted ms a token  speedup  measured ms a token  speedup  plan"]
    alone, really = plans[1].seconds, took[1]
    for count, plan in plans.items():
        seconds = took[count]
        measured = (
            f"{'–':>19}  {'–':>7}"
            if seconds is None or really is None
            else f"{1e3 * seconds:19.3f}  {really / seconds:7.2f}"
        )
        lines.append(f"{count:6}  {1e3 * plan.seconds:20.3f}  {alone / plan.seconds:7.2f}  {measured}  {plan}")
    return lines


def _plain(plans: dict[int, Plan], took: dict[int, float | None], kept: Any, costs: Any) -> dict[str, Any]:
    return {
        "kept": {f"{judge}:{drafter}": share for (judge, drafter), share in kept.items()},
        "costs_s": {name: {"fixed": cost.fixed, "token": cost.token} for name, cost in costs.items()},
        "plans": [
            {
                "levels": list(plan.levels),
                "windows": list(plan.windows),
                "predicted_s": plan.seconds,
                "measured_s": took[count],
            }
            for count, plan in plans.items()
        ],
    }
