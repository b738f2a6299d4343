"""Counts of n-grams in what a model of a pair writes, for the drafter ``backoff``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from bild.decoding import Ngrams, Rules
from bild.engine import Job
from bild.errors import InputError
from bild.generation import BigLittleDecoder


def count_ngrams(
    decoder: BigLittleDecoder,
    inputs: Iterable[Any],
    *,
    order: int = 3,
    writer: Literal["small", "large"] = "small",
    batch_size: int = 1,
    watch: Callable[[int], None] | None = None,
    **options: Any,
) -> Ngrams:
    """Let a model write a text for every input, and count its n-grams.

    Args:
        decoder: the pair.
        inputs: each as for :meth:`~bild.BigLittleDecoder.generate`.
        order: length of the longest n-gram, 1…5.
        writer: ``"small"``, as in the paper, where the small model will read the drafts; ``"large"`` where the large
            one will.
        batch_size: texts written together, 1…
        watch: called with the number of texts so far.
        options: of the texts, such as ``do_sample=True, temperature=1.5`` (the paper's) and ``max_new_tokens``.

    Raises:
        InputError: an input or option that cannot be used.
    """
    if writer not in ("small", "large"):
        raise InputError(f"writer is {writer!r}; allowed are small and large")
    try:
        ngrams = Ngrams(decoder.large.vocab_size, order)
    except ValueError as error:
        raise InputError(str(error)) from None
    jobs: list[Job] = decoder.jobs(list(inputs), **options)
    rules = Rules(decoder.resolve_policy(writer), decoder.asked(options)[1].choice())
    results = decoder.results_each(jobs, rules, batch_size)
    for count, (job, result) in enumerate(zip(jobs, results, strict=True), start=1):
        ngrams.add([[*job.request.prompt[-max(1, order - 1) :], *result.token_ids]])
        if watch is not None:
            watch(count)
    return ngrams
