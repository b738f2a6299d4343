"""The runner: every method on every example, interleaved, under one clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from bild.data.examples import Example
from bild.errors import InputError, one_line
from bild.evaluation.journal import Journal, Record
from bild.evaluation.method import Method, Output

Clock = Callable[[], float]
Progress = Callable[[int, int], None]
"""Called with the number of examples done and of all."""

DEFAULT_WARM_UP = 10


def measure(
    methods: Sequence[Method],
    sets: Mapping[str, Sequence[Example]],
    journal: Journal,
    *,
    prefix: str = "",
    warm_up: int = DEFAULT_WARM_UP,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> None:
    """Decode every example that the journal lacks by every method, and write what came out.

    Example by example, all methods in turn; who goes first moves on with every example, so that each
    method is as often early as late and a machine that slows down or speeds up does so for all.

    Args:
        methods: loaded and ready; their names are unique.
        sets: examples by the name of their set; ids are unique in a set.
        journal: of these methods; examples it has are skipped.
        prefix: text put before every source, as T5's ``"summarize: "``.
        warm_up: examples, 0…, default 10, that every method decodes first without being timed.
        clock: seconds; monotonic.
        progress: told after every example.

    Raises:
        InputError: two methods or two examples of one name.
    """
    examples = [(name, example) for name, members in sets.items() for example in members]
    _check_unique([method.name for method in methods], "method")
    _check_unique([f"{name}/{example.id}" for name, example in examples], "example id")
    waiting = [(index, item) for index, item in enumerate(examples) if not journal.done((item[0], item[1].id))]
    if waiting:
        _warm_up(methods, [example for _, example in examples[:warm_up]], prefix)
    for done, (index, (name, example)) in enumerate(waiting, len(examples) - len(waiting) + 1):
        for method in _rotated(methods, index):
            journal.write(_run(method, name, example, prefix, clock))
        if progress is not None:
            progress(done, len(examples))


def _rotated(methods: Sequence[Method], by: int) -> list[Method]:
    first = by % len(methods)
    return [*methods[first:], *methods[:first]]


def _warm_up(methods: Sequence[Method], examples: Sequence[Example], prefix: str) -> None:
    for index, example in enumerate(examples):
        for method in _rotated(methods, index):
            try:
                method(prefix + example.source)
            except Exception:  # comes again, and is then recorded, when this example's turn is timed
                continue


def _run(method: Method, name: str, example: Example, prefix: str, clock: Clock) -> Record:
    start = clock()
    try:
        output = method(prefix + example.source)
    except Exception as error:  # one text or one peer must not end a run of hours
        return Record(name, example.id, method.name, error=one_line(error))
    return _record(name, example, method, output, clock() - start)


def _record(name: str, example: Example, method: Method, output: Output, elapsed_s: float) -> Record:
    return Record(
        set=name,
        id=example.id,
        method=method.name,
        text=output.text,
        token_ids=tuple(output.token_ids),
        total_s=elapsed_s if output.total_s is None else output.total_s,
        ttft_s=output.ttft_s,
        stats=None if output.stats is None else asdict(output.stats),
        counts=output.counts,
    )


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise InputError(f"{what} {min(twice)!r} is there twice; give each once")
