"""Put every question to every method, in turn, and compare the answers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bild.data.examples import Data, Example
from bild.data.json_text import to_json
from bild.errors import InputError, check_count
from bild.evaluation.bootstrap import DEFAULT_RESAMPLES
from bild.evaluation.figures import choose_baseline
from bild.evaluation.folder import OUTPUTS, SUMMARY, Folder
from bild.evaluation.journal import Journal
from bild.evaluation.measure import Clock, Progress, measure
from bild.evaluation.method import Method
from bild.evaluation.own import PolicyMethod
from bild.evaluation.spec_bench.dialogue import Dialogue, Surprises
from bild.evaluation.spec_bench.figures import Answer, Answers, BenchSummary, group_figures
from bild.evaluation.spec_bench.questions import ALL, Question
from bild.evaluation.spec_bench.table import as_markdown
from bild.evaluation.summary import Failure
from bild.machine import describe_machine, versions

PERPLEXITY, TABLE = "perplexity.jsonl", "spec-bench.md"
WARM_UP = 3
"""Questions: their answers are long."""


def spec_bench(
    methods: Sequence[Method],
    questions: Sequence[Question],
    *,
    out: str | os.PathLike[str] | None = None,
    baseline: str | None = None,
    warm_up: int = WARM_UP,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    fresh: bool = False,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BenchSummary:
    """Answer every question by every method, and compare them group by group.

    Args:
        methods: policies of a pair, loaded; closed at the end.
        questions: see :func:`~bild.evaluation.spec_bench.read_questions`.
        out: folder of the run; the same call goes on where a killed one stopped. None: nothing is kept.
        baseline: method the others are compared with; None: ``large`` if it is there, else the first.
        warm_up: questions that every method answers before the clock counts, 0…, default 3.
        resamples: of the bootstrap, 1…, default 1000.
        seed: of the bootstrap.
        settings: what else answers and times depend on, plain JSON values: compared when a run goes on.
        notes: what else a reader of the tables should know.
        fresh: delete what an earlier run left in ``out``.
        clock: seconds; monotonic.
        progress: told the number of questions done and of all after every one.
        say: told what is being done behind them.

    Raises:
        InputError: an option out of range, a method that is no policy, a model that cannot hold a conversation, or a
            folder that holds another run.
    """
    try:
        own = _policies(methods)
        asked = [question.plain for question in questions] if _reads_alone(own) else list(questions)
        _check(own, asked, warm_up, resamples, seed)
        chosen = choose_baseline([method.name for method in own], baseline, {})
        examples = _examples(asked)
        sets = _sets(asked, examples)
        configuration = _configuration(own, sets, warm_up, {} if settings is None else settings)
        files = (OUTPUTS, PERPLEXITY, SUMMARY, TABLE)
        folder = None if out is None else Folder(Path(out), configuration, fresh=fresh, files=files)
        by_source = {example.source: question for example, question in zip(examples, asked, strict=True)}
        journal = Journal([method.name for method in own], None if folder is None else folder.outputs)
        try:
            dialogues = [Dialogue(method, by_source) for method in own]
            measure(dialogues, sets, journal, warm_up=warm_up, clock=clock, progress=progress)
        finally:
            journal.close()
        say("reading the answers with the large model, for their perplexity")
        judge = next(method for method in own if method.name == chosen)
        surprises = Surprises(judge.decoder, None if folder is None else folder.path / PERPLEXITY)
        summary = summarise(journal, asked, surprises, chosen, resamples=resamples, seed=seed, say=say)
    finally:
        for method in methods:
            method.close()
    summary.details = {method.name: getattr(method, "details", {}) for method in methods}
    summary.configuration, summary.machine = configuration, describe_machine()
    summary.notes = list(notes)
    if folder is not None:
        folder.save(SUMMARY, to_json(summary.to_dict(), indent=2) + "\n")
        folder.save(TABLE, as_markdown(summary))
    return summary


def summarise(
    journal: Journal,
    questions: Sequence[Question],
    surprises: Surprises,
    baseline: str,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> BenchSummary:
    """The figures of a finished run.

    Args:
        journal: a record of every method on every question.
        questions: the questions.
        surprises: of the large model.
        baseline: method that the others are compared with.
        resamples: of the bootstrap, 1…
        seed: of the bootstrap.
        say: told how far reading is, each tenth.

    Raises:
        InputError: no question was answered by every method.
    """
    answers: dict[str, list[Answers]] = {}
    left_out: dict[str, int] = {}
    failures = []
    for done, question in enumerate(questions):
        if 10 * done // len(questions) > 10 * (done - 1) // len(questions) >= 0:
            say(f"the answers to {done} of {len(questions)} questions are read")
        records = journal.records[question.group, question.id]
        wrong = [Failure(r.set, r.id, r.method, r.error) for r in records.values() if r.error is not None]
        failures += wrong
        if wrong:
            left_out[question.group] = left_out.get(question.group, 0) + 1
            continue
        answered = {name: Answer(records[name], surprises.of(question, records[name])) for name in journal.methods}
        answers.setdefault(question.group, []).append(answered)
    if not answers:
        raise InputError(f"no question was answered by every method; {failures[0].method}: {failures[0].error}")
    if len(answers) > 1:
        answers[ALL] = [each for members in answers.values() for each in members]
        left_out[ALL] = sum(left_out.values())
    how = {"resamples": resamples, "seed": seed}
    groups = {name: group_figures(each, baseline, left_out.get(name, 0), **how) for name, each in answers.items()}
    return BenchSummary(baseline, groups, failures, bootstrap=how)


def _policies(methods: Sequence[Method]) -> list[PolicyMethod]:
    for method in methods:
        if not isinstance(method, PolicyMethod):
            raise InputError(f"method {method.name!r} is no policy; Spec-Bench takes policies, large and small")
    return [method for method in methods if isinstance(method, PolicyMethod)]


def _reads_alone(methods: Sequence[PolicyMethod]) -> bool:
    """Whether texts are read as they are, by an encoder."""
    return any(method.decoder.large.is_encoder_decoder for method in methods)


def _check(
    methods: Sequence[PolicyMethod], questions: Sequence[Question], warm_up: int, resamples: int, seed: int
) -> None:
    if not methods or not questions:
        raise InputError("there are no questions; give at least one" if methods else "no method is left to compare")
    check_count("warm_up", warm_up, least=0)
    check_count("resamples", resamples)
    check_count("seed", seed, least=0)
    if _reads_alone(methods):
        if any(len(question.turns) > 1 for question in questions):
            raise InputError(
                "an encoder-decoder reads one text and has no second turn; choose with --groups translation"
            )
        return
    for method in methods:
        tokenizer = method.decoder.tokenizer
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError("the checkpoint has no chat template, and Spec-Bench is a chat; take an instruct model")


def _examples(questions: Sequence[Question]) -> list[Example]:
    """Of each question, with a source that no other turns have: blank lines may be in turns, too."""
    ways = Counter(question.example.source for question in {each.turns: each for each in questions}.values())
    return [
        each.example if ways[each.example.source] == 1 else Example(each.id, to_json(each.turns)) for each in questions
    ]


def _sets(questions: Sequence[Question], examples: Sequence[Example]) -> dict[str, list[Example]]:
    sets: dict[str, list[Example]] = {}
    for question, example in zip(questions, examples, strict=True):
        sets.setdefault(question.group, []).append(example)
    return sets


def _configuration(
    methods: Sequence[PolicyMethod], sets: Mapping[str, list[Example]], warm_up: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    import torch

    data = {name: {"questions": len(members), "sha256": Data(name, members).digest} for name, members in sets.items()}
    return {
        "methods": sorted(method.name for method in methods),
        "data": data,
        "warm_up": warm_up,
        **settings,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
