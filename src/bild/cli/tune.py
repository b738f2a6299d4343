"""bild tune: the fastest thresholds of a quality budget, with evidence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli.streams import print_json
from bild.data.settings import DEFAULT_MAX_NEW_TOKENS

if TYPE_CHECKING:
    from bild.generation import Pair
    from bild.tuning import Tuning
    from bild.tuning.judge import Judged


def tune(
    data: examples.DevSets,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on where a killed one stopped.")],
    budget: Annotated[
        float,
        typer.Option(help="Points of the metric that may be lost against the large model, 0…; each is a percent."),
    ] = 0.3,
    confidence: Annotated[
        float, typer.Option(help="With which the budget is kept on other texts, between 0.5 and 1.")
    ] = 0.9,
    no_confidence: Annotated[
        bool,
        typer.Option("--no-confidence", help="Let the loss on the dev texts themselves decide, which chance flatters."),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            help="bleu, chrf, rouge1, rouge2, rougeL or exact_match; against the large model's own texts same_tokens, "
            "same_prefix or perplexity. Default: bleu, rougeL but for translation and for prompts alone."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Where the tuned pair is written: a folder or .json file. Default: into --pair.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="After which the search begins nothing new, above 0; what it found is then judged.")
    ] = 3.0,
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
    middle: options.Middle = None,
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

    Prompts alone will do: texts without any references are compared with what the large model writes alone.
    Half of each dev set proposes policies, the other half judges them: the budget is kept with --confidence on other
    texts of the same kind. Dev sets that are too small for that are an error that says how many texts are missing;
    the pair is then left as it is. With a middle model the best lossless cascade is tried beside what was chosen, and
    kept if it is faster. What was found goes to stdout, progress to stderr; --out gets tune.json and
    pareto.png.
    """
    import torch

    from bild.data import read_sets
    from bild.data.settings import describe_pair
    from bild.errors import InputError
    from bild.generation.pair import choose_pair
    from bild.tuning.agreement import metric_named, without_references

    counted = examples.budget_metric(task, metric)
    metric_named(counted)
    chosen = choose_pair(pair, large, small, None, middle)
    place = _place(save, pair, own_checkpoints=large is not None or small is not None)
    columns = {"source_column": source_column, "target_column": target_column}
    sets = read_sets(data, target_data, split=split, limit=limit, **columns)
    if without_references({name: each.examples for name, each in sets.items()}) and metric is None:
        counted = "rougeL"
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        middle=middle,
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
        confidence=None if no_confidence else confidence,
        minutes=minutes,
        prefix=prefix,
        max_new_tokens=max_new_tokens,
        settings={
            **describe_pair(
                chosen.large,
                chosen.cheap,
                chosen.middle,
                middle_window=chosen.middle_window,
                drafter=chosen.drafter,
            ),
            "runtime": runtime,
            "dtype": decoder.dtype,
            "device": str(decoder.large.device),
            "threads": torch.get_num_threads(),
            **languages,
        },
        fresh=fresh,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    draw(found, out / "pareto.png")
    _show(found)
    if as_json:
        print_json(found.to_dict())
    if not found.enough_texts:
        raise InputError(_too_small(found))
    if not found.within_budget:
        lost = ", ".join(f"{value:.2f} on {name}" for name, value in found.loss.items())
        raise InputError(
            f"no policy loses at most {budget:g} points; the nearest, {found.method}, loses {lost}; "
            "raise --budget, or align the small model"
        )
    _save(found, chosen, place)


def _place(save: Path | None, pair: str | None, own_checkpoints: bool) -> Path:
    """Where the tuned pair goes.

    Raises:
        InputError: nowhere was named; the pair inside an installation is never written to unasked.
    """
    from bild.errors import InputError

    if save is not None:
        return save
    if own_checkpoints:
        raise InputError("these checkpoints are no pair on disk yet; say where to write it with --save")
    if pair is None:
        raise InputError(
            "the bundled pair is part of the installation and stays as it is; say where to write with --save"
        )
    return Path(pair)


def _show(found: Tuning) -> None:
    from bild.evaluation.table import print_summary

    print_summary(found.summary)
    if found.agreement:
        print("there are no references: quality is against the large model's own texts")
    print(f"\nchosen: {found.method}")
    for line in (*_agreement(found), *_by_what(found), *_not_settled(found)):
        print(line)
    if found.middle is not None:
        print(_by_the_middle(found))
    speedup = found.speedup
    if not found.pays:
        times = f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}] times as fast as the large model alone"
        print(f"this pair does not pay on this machine: {times}")


def _agreement(found: Tuning) -> list[str]:
    """How far the policy's texts agree with the large model's, set by set."""
    return [
        f"{name}: {each['texts']} texts, {each['same_tokens']:.1f} % of them the large model's own, "
        f"{each['same_prefix']:.1f} % of its tokens before the first difference, ROUGE-L {each['rougeL']:.1f} against "
        f"its texts, perplexity {each['perplexity']:.3f} against {each['perplexity_large']:.3f} "
        f"({each['perplexity_change']:+.2%})"
        for name, each in found.agreement.items()
    ]


def _by_what(found: Tuning) -> list[str]:
    """What the policy was chosen by, set by set."""
    if found.policy.lossless:
        return ["it is lossless: it writes the large model's own text, but for rounding, and loses none on any texts"]
    if found.confidence is None:
        lost = ", ".join(f"{value:.2f} on {name}" for name, value in found.loss.items())
        return [f"it loses {lost}: on these very texts, among which it was chosen; nothing is said of others"]
    return [
        f"{name}: it loses {bound.loss:.2f} on {bound.texts} texts that had no part in proposing it; on as many others "
        f"at most {bound.upper:.2f} with confidence {found.confidence:g}"
        for name, bound in found.chosen.bounds.items()
    ]


def _by_the_middle(found: Tuning) -> str:
    """What the middle model brings."""
    middle = found.middle
    assert middle is not None
    value, low, high = middle.speedup.value, middle.speedup.low, middle.speedup.high
    times = f"{value:.2f} [{low:.2f}, {high:.2f}] times as fast as {found.method}"
    what = "it is kept, and lossless" if middle.pays else "it is left out"
    return f"with the middle model, {middle.plan}: {times}; {what}"


def _not_settled(found: Tuning) -> list[str]:
    """What more texts would settle of the fastest policy that was proposed."""
    if found.verdict is None or found.verdict.hoped is None:
        return []
    hoped = found.verdict.hoped
    bounds = ", ".join(f"at most {bound.upper:.2f} on {name}" for name, bound in hoped.bounds.items())
    lines = [
        f"not settled: {_name(hoped)}, {hoped.point.speedup:.2f} times as fast by prediction, loses {bounds} "
        f"with confidence {found.confidence:g}"
    ]
    for name, missing in found.verdict.missing.items():
        loss = hoped.bounds[name].loss
        if missing is None:
            lines.append(f"{name}: it loses {loss:.2f}, so more texts would not settle that it keeps the budget")
        else:
            lines.append(
                f"{name}: {missing} more texts would settle that it keeps the budget, if it goes on to lose {loss:.2f}"
            )
    return lines


def _too_small(found: Tuning) -> str:
    assert found.verdict is not None
    lacking = ", ".join(f"{name} lacks {count} texts" for name, count in found.verdict.too_small.items())
    return (
        f"too few dev texts to tell with confidence {found.confidence:g} whether a policy loses at most "
        f"{found.budget:g} points: {lacking}; only lossless policies are sure to keep it, the fastest {found.method}; "
        "give more texts, a larger --budget or a lower --confidence, or let these texts alone decide: --no-confidence"
    )


def _name(judged: Judged) -> str:
    from bild.tuning.grid import method_name

    return method_name(judged.policy)


def _save(found: Tuning, chosen: Pair, place: Path) -> None:
    from dataclasses import replace

    changes: dict[str, Any] = {"policy": found.policy, "middle": None}
    if found.middle is not None and found.middle.pays:
        changes = {"policy": found.middle.policy, "middle_window": found.middle.window}
    file = replace(chosen, **changes, evidence=found.evidence()).save(place)
    print(f"written to {file}", file=sys.stderr)
