"""Work that items share: loaded pairs, prices, policies looked up, policies run. All of it is kept under one folder.

What a stage depends on names its folder, so nothing is computed twice, a killed run goes on where it stopped, and
other checkpoints or data never meet the files of these.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.files import write_whole
from bild.decoding import Policy
from bild.errors import InputError, writing
from bild.evaluation.method import Method
from bild.evaluation.own import PolicyMethod
from bild.evaluation.run import evaluate
from bild.evaluation.summary import Summary
from bild.machine import versions
from bild.reproduction.inputs import Inputs, Variant, digests
from bild.tuning.bench import LARGE, Bench
from bild.tuning.costs import CostModel
from bild.tuning.search import Point, Search

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

WORK = "work"


@dataclass(frozen=True)
class Row:
    """A policy that is run for real."""

    name: str
    variant: Variant
    policy: Policy
    draw: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``generate`` that make it sample; empty: greedy."""


class Workspace:
    """The shared work of a run.

    Args:
        inputs: what everything is computed from.
        out: folder of the run.
        load: loads a pair, as :meth:`bild.BigLittleDecoder.from_pretrained`, which is the default.
        say: told what is being done.
        fresh: delete the work of earlier runs first.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self,
        inputs: Inputs,
        out: Path,
        *,
        load: Callable[..., BigLittleDecoder] | None = None,
        say: Callable[[str], None] = lambda line: None,
        fresh: bool = False,
    ) -> None:
        self.inputs, self.out, self.say, self._load = inputs, out, say, load
        try:
            if fresh and (out / WORK).exists():
                shutil.rmtree(out / WORK)
            (out / WORK).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from None
        self._decoders: dict[Variant, BigLittleDecoder] = {}
        self._costs: dict[Variant, CostModel] = {}
        self._searches: dict[tuple[Variant, str, str], Search] = {}
        self._points: dict[tuple[Variant, str, str, Policy], Point] = {}
        self._summaries: dict[Path, Summary] = {}

    def with_inputs(self, inputs: Inputs) -> Workspace:
        """For other inputs, in the same folder."""
        return Workspace(inputs, self.out, load=self._load, say=self.say)

    @property
    def names(self) -> list[str]:
        """Names of the test sets."""
        return list(self.inputs.test)

    @property
    def options(self) -> dict[str, Any]:
        """Options of every call of ``generate``."""
        return {"max_new_tokens": self.inputs.setup.max_new_tokens}

    def decoder(self, variant: Variant) -> BigLittleDecoder:
        """The pair, loaded once."""
        if variant not in self._decoders:
            from bild.generation import BigLittleDecoder

            setup = self.inputs.setup
            load = BigLittleDecoder.from_pretrained if self._load is None else self._load
            self.say(f"loading the {variant.label} pair")
            decoder = load(
                pair=None,
                large=variant.large,
                small=variant.small,
                runtime=variant.runtime,
                dtype=setup.dtype,
                device=setup.device,
                trust_remote_code=setup.trust_remote_code,
            )
            if setup.src_lang is not None or setup.tgt_lang is not None:
                decoder.set_languages(setup.src_lang, setup.tgt_lang)
            self._decoders[variant] = decoder
        return self._decoders[variant]

    def bench(self, variant: Variant, sets: Mapping[str, Any]) -> Bench:
        """What tuning needs of a pair and texts."""
        return Bench(self.decoder(variant), sets, self.inputs.prefix, self.options, self.say)

    def costs(self, variant: Variant) -> CostModel:
        """What a pass of either model costs here, learnt from the test sets."""
        if variant not in self._costs:
            folder = self._folder("costs", {"pair": variant.describe(), "data": digests(self.inputs.test)})
            self._costs[variant] = self.bench(variant, self.inputs.test).calibrate(folder / "runs.jsonl")
        return self._costs[variant]

    def search(self, variant: Variant, name: str, split: str = "test") -> Search:
        """What looking policies up on one set takes."""
        key = (variant, name, split)
        if key not in self._searches:
            sets = {name: self.inputs.sets(split)[name]}
            costs = self.costs(variant)
            folder = self._folder("traces", {"pair": variant.describe(), "data": digests(sets)})
            self._searches[key] = self.bench(variant, sets).search(
                folder / "branches.jsonl", self.inputs.searched, costs
            )
        return self._searches[key]

    def points(self, variant: Variant, name: str, policies: Sequence[Policy], split: str = "test") -> list[Point]:
        """What these policies make of one set, looked up; in their order."""
        search = self.search(variant, name, split)
        missing = [policy for policy in policies if (variant, name, split, policy) not in self._points]
        if missing:
            self.say(f"{variant.label}, {name} ({split}): looking up {len(missing)} policies")
            for point in search.points(missing, range(len(search.texts.examples))):
                self._points[variant, name, split, point.policy] = point
        return [self._points[variant, name, split, policy] for policy in policies]

    def quality_of_large(self, variant: Variant, name: str, split: str = "test") -> float:
        """Score of the large model alone, greedy."""
        search = self.search(variant, name, split)
        return search.texts.quality({at: outcome.tokens for at, outcome in enumerate(search.large)})[name]

    def run(self, rows: Sequence[Row], name: str) -> Summary:
        """Decode a test set by each row's policy for real, in turn."""
        described = {
            row.name: {"pair": row.variant.describe(), "policy": row.policy.to_dict(), **row.draw} for row in rows
        }
        return self.evaluate(lambda: [self._method(row) for row in rows], described, name)

    def evaluate(
        self,
        methods: Callable[[], Sequence[Method]],
        described: Mapping[str, Any],
        name: str,
        baseline: str = LARGE,
    ) -> Summary:
        """Decode a test set by any methods, in turn.

        Args:
            methods: makes them.
            described: by name, what each one's texts and times depend on.
            name: of the set.
            baseline: method the others are compared with.
        """
        sets = {name: self.inputs.test[name]}
        folder = self._folder("runs", {"methods": dict(described), "baseline": baseline, "data": digests(sets)})
        if folder not in self._summaries:
            self.say(f"running {len(described)} methods on {len(sets[name])} texts of {name}: {', '.join(described)}")
            inputs = self.inputs
            how: dict[str, Any] = {"out": folder, "baseline": baseline, "task": inputs.task, "prefix": inputs.prefix,
                                   "resamples": inputs.resamples, "bleu_tokenizer": inputs.bleu_tokenizer}  # fmt: skip
            self._summaries[folder] = evaluate(methods(), sets, progress=self._tell, **how)
        return self._summaries[folder]

    def _method(self, row: Row) -> PolicyMethod:
        options = {**self.options, **({"do_sample": True} if row.draw else {}), **row.draw}
        return PolicyMethod(row.name, self.decoder(row.variant), row.policy, options)

    def _tell(self, done: int, total: int) -> None:
        if 4 * done // total > 4 * (done - 1) // total:
            self.say(f"{done} of {total} texts")

    def _folder(self, kind: str, depends: Mapping[str, Any]) -> Path:
        """Where the files of a stage are that depends on these things."""
        setup = self.inputs.setup
        common = {"prefix": self.inputs.prefix, "max_new_tokens": setup.max_new_tokens, "dtype": setup.dtype,
                  "device": setup.device, "versions": versions(), **self.inputs.languages}  # fmt: skip
        text = json.dumps({**depends, **common}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        folder = self.out / WORK / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "depends.json", text)
        return folder
