"""From a quality budget to a policy, with the evidence for it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bild.data.examples import Data, Example
from bild.data.json_text import to_json
from bild.data.quality import QualityMetric
from bild.decoding import Policy
from bild.errors import InputError
from bild.evaluation.folder import Folder
from bild.machine import versions
from bild.tuning.agreement import without_references
from bild.tuning.bench import LARGE, Bench, metric_of
from bild.tuning.finals import Finals
from bild.tuning.grid import default_grid, with_exact
from bild.tuning.judge import Judge, Verdict, halves
from bild.tuning.middle import check_plannable, try_middle
from bild.tuning.search import Point, Search, distinct, pareto
from bild.tuning.tuned import Tuning

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

CALIBRATION, FINALS, TRACES, RESULT = "calibration.jsonl", "finals.jsonl", "traces.jsonl", "tune.json"
MIDDLE = "middle.jsonl"
FINALISTS = 4
"""Policies that are run for real, at most, beside a lossless one."""
DEFAULT_BUDGET = 0.3
DEFAULT_CONFIDENCE = 0.9
DEFAULT_MINUTES = 3.0


def tune(
    decoder: BigLittleDecoder,
    sets: Mapping[str, Sequence[Example]],
    *,
    out: str | os.PathLike[str],
    budget: float = DEFAULT_BUDGET,
    confidence: float | None = DEFAULT_CONFIDENCE,
    metric: str | QualityMetric = "bleu",
    grid: Sequence[Policy] | None = None,
    prefix: str = "",
    max_new_tokens: int | None = None,
    minutes: float = DEFAULT_MINUTES,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Find the fastest policy that loses at most ``budget`` quality points on every set.

    Each model's word on every prefix is computed once (:mod:`bild.tuning.traces`), so hundreds of policies are
    looked up rather than run; seconds come from a cost model fitted to short runs on this machine. Half of the texts
    propose policies, the other half judges them (:mod:`bild.tuning.judge`); the fastest that were kept are then run
    for real beside the large model alone.

    Args:
        decoder: the pair, in the runtime it will be used in. With a middle model thresholds are found without it; then
            the best lossless cascade is tried beside what was chosen (:mod:`bild.tuning.middle`).
        sets: dev examples by name, every one with references, or none: then the large model's own texts are what
            others are compared with. Texts that are too long for the pair are left out.
        out: folder for what is computed and found; the same call goes on where a killed one stopped.
        budget: points of the metric that may be lost against the large model, 0…, default 0.3.
        confidence: with which the budget is kept on other texts of the same kind, 0.5 to 1, both excluded, default
            0.9; None: the loss on these very texts decides, which chance flatters.
        metric: ``"bleu"``, ``"chrf"``, ``"rouge1"``, ``"rouge2"``, ``"rougeL"``, ``"exact_match"``, or any
            :class:`bild.data.QualityMetric`; or one of agreement with the large model, which needs no references:
            ``"same_tokens"``, ``"same_prefix"`` or ``"perplexity"`` (:mod:`bild.tuning.agreement`).
        grid: policies to try, all of one measure and metric; None: :func:`bild.tuning.grid.default_grid`.
            Lossless ones are always tried with them, so that some policy keeps any budget.
        prefix: text put before every source.
        max_new_tokens: longest text, 1…; None: the checkpoint's.
        minutes: after which the search begins nothing new, above 0, default 3; what it found by then is judged.
        settings: what else the texts depend on (names of checkpoints, …), compared when a run goes on.
        fresh: delete what an earlier run left in ``out``.
        say: told what is being done.

    Raises:
        InputError: a value out of range, references for some examples only, or a folder of another run.
    """
    _check(sets, budget, confidence, minutes)
    check_plannable(decoder)
    until, measure = time.monotonic() + 60 * minutes, metric_of(metric)
    asked = {"metric": measure.name, "prefix": prefix, "max_new_tokens": max_new_tokens, **(settings or {})}
    if without_references(sets):
        asked["against"] = LARGE
    asked["data"] = {name: Data(name, list(members)).digest for name, members in sets.items()}
    files = (CALIBRATION, FINALS, TRACES, MIDDLE, RESULT)
    folder = Folder(Path(out), {**asked, "versions": versions()}, fresh=fresh, files=files)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    bench = Bench(decoder.using(None), sets, prefix, options, say).usable()
    costs = bench.calibrate(folder.path / CALIBRATION)
    search = bench.search(folder.path / TRACES, measure, costs, budget)
    policies = with_exact(default_grid() if grid is None else grid)
    if confidence is None:
        found = _by_the_loss(search, policies, until)
    else:
        found = _by_a_judge(search, policies, Judge(search, budget, confidence), until)
    finals = Finals.run(bench, search, found.finalists, found.texts, folder.path / FINALS)
    summary = finals.summary()
    finalists = [finals.finalist(point, budget, found.judge) for point in found.finalists]
    chosen = finals.fastest(finalists, summary)
    middle = None if decoder.middle is None else try_middle(decoder, bench, chosen.policy, folder.path / MIDDLE)
    tuning = Tuning(
        chosen,
        finalists,
        measure.name,
        budget,
        found.verdict,
        summary,
        pareto(found.points),
        found.points,
        costs,
        asked,
        finals.agreement(chosen.point) if "against" in asked else {},
        middle,
    )
    folder.save(RESULT, to_json(tuning.to_dict(), indent=1) + "\n")
    return tuning


class _Found(NamedTuple):
    """What goes on to be run for real."""

    points: Sequence[Point]
    finalists: Sequence[Point]
    """On the texts below, the fastest first; a lossless one is among them."""
    texts: Sequence[int]
    judge: Judge | None = None
    verdict: Verdict | None = None


def _by_the_loss(search: Search, policies: Sequence[Policy], until: float) -> _Found:
    """The fastest whose loss on these very texts is within the budget."""
    points, texts = search.run(policies, until=until)
    kept = distinct(search.within_budget(points))
    lossless = [point for point in kept if point.policy.lossless][:1]
    return _Found(points, _once([*kept[:FINALISTS], *lossless]), texts)


def _by_a_judge(search: Search, policies: Sequence[Policy], judge: Judge, until: float) -> _Found:
    """The fastest that one half of the texts proposes and the other half keeps."""
    propose, texts = halves(search.texts.by_set(range(len(search.texts.examples))))
    points, read = search.run(policies, propose, until)
    candidates = judge.candidates(points, read)
    search.progress(f"judging {len(candidates)} policies by {len(texts)} other texts")
    judged = judge.judge(candidates, texts)
    kept = [each.point for each in judged if each.kept]
    # The safest is lossless, so it is kept whatever the texts say.
    finalists = _once([*kept[::-1][: FINALISTS - 1], kept[0]])
    return _Found(points, finalists, texts, judge, judge.verdict(judged, texts))


def _once(points: Sequence[Point]) -> list[Point]:
    """Without points of a policy that was there before."""
    return list({point.policy: point for point in points}.values())


def _check(sets: Mapping[str, Sequence[Example]], budget: float, confidence: float | None, minutes: float) -> None:
    if not (budget >= 0 and math.isfinite(budget)):
        raise InputError(f"budget is {budget}; allowed is a number of 0 or more")
    if confidence is not None and not 0.5 < confidence < 1:
        raise InputError(f"confidence is {confidence}; allowed is a number between 0.5 and 1, or none at all")
    if not minutes > 0:
        raise InputError(f"minutes is {minutes}; allowed is a number above 0")
    if not sets or not all(sets.values()):
        raise InputError("there are no examples to tune on; give at least one a set")
    without_references(sets)
