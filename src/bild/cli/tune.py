"""bild tune: the fastest thresholds of a quality budget, with evidence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli.streams import print_json
from bild.data.settings import DEFAULT_MAX_NEW_TOKENS

if TYPE_CHECKING:
    from bild.generation import Pair
    from bild.tuning import Tuning


def tune(
    data: examples.DevSets,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on where a killed one stopped.")],
    budget: Annotated[float, typer.Option(help="Quality points that may be lost against the large model, 0…")] = 0.3,
    metric: Annotated[
        str | None,
        typer.Option(
            help="bleu, chrf, rouge1, rouge2, rougeL or exact_match. Default: bleu, rougeL but for translation."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Where the tuned pair is written: a folder or .json file. Default: into --pair.")
    ] = None,
    target_data: examples.TargetData = None,
    source_column: examples.SourceColumn = "source",
    target_column: examples.TargetColumn = "target",
    split: examples.Split = "validation",
    limit: examples.Limit = None,
    task: Annotated[str, typer.Option(help="translation, summarization, completion or chat.")] = "translation",
    prefix: examples.Prefix = "",
    max_new_tokens: examples.MaxNewTokens = DEFAULT_MAX_NEW_TOKENS,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "static",
    trust_remote_code: options.TrustRemoteCode = False,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON line at the end.")] = False,
) -> None:
    """Find the fastest thresholds that lose at most --budget points on each dev set, and write them into the pair.

    What was found goes to stdout, progress to stderr; --out gets tune.json and pareto.png. A budget that nothing
    meets is an error that names the nearest point; the pair is then left as it is.
    """
    from bild.data import read_sets
    from bild.data.settings import describe_pair
    from bild.errors import InputError
    from bild.generation.pair import bundled_pair, choose_pair

    counted = examples.budget_metric(task, metric)
    chosen = choose_pair(pair, large, small)
    place = save if save is not None else (Path(pair) if pair is not None else bundled_pair())
    if save is None and (large is not None or small is not None):
        raise InputError("these checkpoints are no pair on disk yet; say where to write it with --save")
    columns = {"source_column": source_column, "target_column": target_column}
    sets = read_sets(data, target_data, split=split, limit=limit, **columns)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
    )
    languages = {"src_lang": src_lang, "tgt_lang": tgt_lang} if src_lang is not None or tgt_lang is not None else {}
    from bild.tuning import tune as find
    from bild.tuning.plot import draw

    found = find(
        decoder,
        {name: each.examples for name, each in sets.items()},
        out=out,
        budget=budget,
        metric=counted,
        prefix=prefix,
        max_new_tokens=max_new_tokens,
        settings={**describe_pair(chosen.large, chosen.small), "runtime": runtime, "dtype": decoder.dtype, **languages},
        fresh=fresh,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    draw(found, out / "pareto.png")
    _show(found)
    if as_json:
        print_json(found.to_dict())
    if not found.within_budget:
        lost = ", ".join(f"{value:.2f} on {name}" for name, value in found.loss.items())
        raise InputError(
            f"no policy loses at most {budget:g} points; the nearest, {found.method}, loses {lost}; "
            "raise --budget, or align the small model"
        )
    _save(found, chosen, place)


def _show(found: Tuning) -> None:
    from bild.evaluation.table import print_summary

    print_summary(found.summary)
    print(f"\nchosen: {found.method}")
    speedup = found.speedup
    if not found.pays:
        times = f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}] times as fast as the large model alone"
        print(f"this pair does not pay on this machine: {times}")


def _save(found: Tuning, chosen: Pair, place: Path) -> None:
    from dataclasses import replace

    file = replace(chosen, policy=found.policy, evidence=found.evidence()).save(place)
    print(f"written to {file}", file=sys.stderr)
