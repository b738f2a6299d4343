"""Evaluate methods on sets of examples, from the first text to the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bild.data.examples import Example
from bild.data.json_text import to_json
from bild.data.quality import DEFAULT_TOKENIZER, TASKS, metrics
from bild.errors import InputError, LoadError, check_count
from bild.evaluation.bootstrap import DEFAULT_RESAMPLES
from bild.evaluation.figures import ALL, choose_baseline, summarise
from bild.evaluation.folder import REPORT, SUMMARY, Folder
from bild.evaluation.journal import Journal
from bild.evaluation.measure import DEFAULT_WARM_UP, Clock, Progress, measure
from bild.evaluation.memory import PeakMemory
from bild.evaluation.method import Method
from bild.evaluation.report import render
from bild.evaluation.summary import Summary
from bild.machine import describe_machine, versions

MemoryOf = Callable[[str, Sequence[str]], PeakMemory]
"""Peak memory of a method by name, on these sources."""


def evaluate(
    methods: Sequence[Method],
    examples: Mapping[str, Sequence[Example]] | Sequence[Example],
    *,
    out: str | os.PathLike[str] | None = None,
    failed: Mapping[str, str] | None = None,
    baseline: str | None = None,
    task: str = "translation",
    prefix: str = "",
    warm_up: int = DEFAULT_WARM_UP,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    bleu_tokenizer: str = DEFAULT_TOKENIZER,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    fresh: bool = False,
    memory_of: MemoryOf | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Summary:
    """Decode every example by every method, in turn, and compare them.

    Args:
        methods: loaded and ready; closed when the last example is done, or on the way out of an error.
        examples: sets by name, or the examples of a single set.
        out: folder of the run; the same call goes on where a killed one stopped. None: nothing is kept.
        failed: methods that could not be loaded, and why; named in the results.
        baseline: method the others are compared with; None: ``large`` if it is there, else the first.
        task: ``"translation"``, ``"summarization"``, ``"completion"`` or ``"chat"``: metrics shown first.
        prefix: text put before every source.
        warm_up: examples every method decodes before the clock counts, 0…, default 10.
        resamples: of the bootstrap, 1…, default 1000.
        seed: of the bootstrap.
        bleu_tokenizer: how BLEU finds words, one of :data:`bild.data.quality.TOKENIZERS`, default ``"13a"``: by spaces.
        settings: what else texts and times depend on (checkpoints, dtype, …), plain JSON values: kept
            with the run, and compared when it goes on.
        notes: lines for the reader of the report.
        fresh: delete what an earlier run left in ``out``.
        memory_of: measures a method's peak memory, see :func:`bild.evaluation.memory.measure_memory`;
            None: not measured.
        clock: seconds; monotonic.
        progress: told the number of examples done and of all after every example.

    Returns:
        The figures; in ``out`` also ``summary.json`` and ``report.html``.

    Raises:
        InputError: an option out of range, a folder that holds another run, or a package of the
            extra ``eval`` that is missing.
    """
    sets = examples if isinstance(examples, Mapping) else {"texts": examples}
    names = [method.name for method in methods]
    reasons = dict({} if failed is None else failed)
    try:
        _check_extras(report=out is not None)
        _check(sets, task, warm_up, resamples, seed)
        # A tokenizer that is not there should be known before the hours of decoding.
        metrics(bleu_tokenizer)
        choose_baseline(names, baseline, reasons)
        configuration = _configuration([*names, *reasons], sets, prefix, warm_up, settings)
        folder = None if out is None else Folder(Path(out), configuration, fresh=fresh)
        journal = Journal(names, None if folder is None else folder.outputs)
        try:
            measure(methods, sets, journal, prefix=prefix, warm_up=warm_up, clock=clock, progress=progress)
        finally:
            journal.close()
    finally:
        for method in methods:
            method.close()
    how: dict[str, Any] = {"resamples": resamples, "seed": seed, "bleu_tokenizer": bleu_tokenizer}
    summary = summarise(journal, sets, baseline=baseline, task=task, **how)
    summary.failed |= reasons
    summary.notes += notes
    summary.weight_bytes = {method.name: method.weight_bytes for method in methods}
    summary.details = {method.name: getattr(method, "details", {}) for method in methods}
    summary.configuration, summary.machine = configuration, describe_machine()
    if memory_of is not None:
        _measure_memory(summary, memory_of, _sources(sets, prefix), folder)
    if folder is not None:
        folder.save(SUMMARY, to_json(summary.to_dict(), indent=2) + "\n")
        folder.save(REPORT, render(summary, sets, journal))
    return summary


def _check_extras(*, report: bool) -> None:
    """Hours of decoding should not end in a missing package."""
    needed = ["sacrebleu", "rouge_score", *(["matplotlib"] if report else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} is not installed; pip install 'bild[eval]'")


def _check(sets: Mapping[str, Sequence[Example]], task: str, warm_up: int, resamples: int, seed: int) -> None:
    empty = [name for name, members in sets.items() if not members]
    if empty or not sets:
        raise InputError(f"set {empty[0]!r} holds no examples; give at least one" if empty else "there are no examples")
    if ALL in sets and len(sets) > 1:
        raise InputError(f"a set is named {ALL!r}, which stands for all sets together; name it otherwise")
    if task not in TASKS:
        raise InputError(f"task is {task!r}; allowed are {', '.join(TASKS)}")
    check_count("warm_up", warm_up, least=0)
    check_count("resamples", resamples)
    check_count("seed", seed, least=0)


def _configuration(
    methods: Sequence[str],
    sets: Mapping[str, Sequence[Example]],
    prefix: str,
    warm_up: int,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    import torch

    from bild.data.examples import Data

    data = {name: {"examples": len(members), "sha256": Data(name, list(members)).digest}
            for name, members in sets.items()}  # fmt: skip
    return {
        # A peer that failed once and loads the next time changes its place, but not the run.
        "methods": sorted(methods),
        "data": data,
        "prefix": prefix,
        "warm_up": warm_up,
        **({} if settings is None else settings),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _sources(sets: Mapping[str, Sequence[Example]], prefix: str) -> list[str]:
    return [prefix + example.source for members in sets.values() for example in members]


def _measure_memory(summary: Summary, memory_of: MemoryOf, sources: Sequence[str], folder: Folder | None) -> None:
    known = {} if folder is None else folder.memory()
    for name in summary.methods:
        try:
            summary.peak_memory[name] = known[name] if name in known else memory_of(name, sources)
        except LoadError as error:
            summary.notes.append(str(error))
        if folder is not None:
            folder.save_memory(summary.peak_memory)
