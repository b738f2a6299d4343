"""What an item is computed from: checkpoints, data, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bild.data.examples import Data, Example
from bild.data.quality import DEFAULT_TOKENIZER, LABELS
from bild.data.settings import describe_checkpoint, describe_pair
from bild.errors import InputError
from bild.evaluation.bootstrap import DEFAULT_RESAMPLES
from bild.evaluation.roster import Setup
from bild.generation.seeds import check_seed

Sets = Mapping[str, Sequence[Example]]
UNALIGNED, ALIGNED = "unaligned", "aligned"
DEFAULT_SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Variant:
    """Two checkpoints that decode together, and the runtime they do it in."""

    label: str
    large: str
    small: str
    runtime: str

    def describe(self) -> dict[str, Any]:
        """Names, and digests of what is on disk."""
        return {**describe_pair(self.large, self.small), "runtime": self.runtime}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that decides about an item.

    Args:
        setup: the pair (the *unaligned* one), runtime, dtype, device, longest text.
        test: sets that are reported on, by name, every example with references.
        dev: sets that policies are chosen on, under the names of the test sets they belong to; empty: none.
        aligned: folder or hub name of a small checkpoint trained on the large model's outputs; None: there is none.
        early_exit: ``DIR:N``: a checkpoint whose first N decoder layers can write; None: there is none.
        calm: a checkpoint every layer of which can write; None: there is none.
        metric: quality, a name of :data:`bild.data.quality.LABELS`, default ``"bleu"``.
        bleu_tokenizer: how BLEU finds words, one of :data:`bild.data.quality.TOKENIZERS`, default ``"13a"``: by spaces.
        task: as for :func:`bild.evaluation.evaluate`.
        prefix: text put before every source.
        seeds: of what is sampled, one run each, default 1, 2, 3.
        resamples: of the bootstrap, 1…, default 1000.

    Raises:
        InputError: an example without reference, dev sets of other names, an unknown metric, no seed,
            an early exit that is not ``DIR:N``.
    """

    setup: Setup
    test: Sets
    dev: Sets = field(default_factory=dict)
    aligned: str | None = None
    early_exit: str | None = None
    calm: str | None = None
    metric: str = "bleu"
    bleu_tokenizer: str = DEFAULT_TOKENIZER
    task: str = "translation"
    prefix: str = ""
    seeds: Sequence[int] = DEFAULT_SEEDS
    resamples: int = DEFAULT_RESAMPLES

    def __post_init__(self) -> None:
        _ = self.exit_variant
        if self.metric not in LABELS:
            raise InputError(f"metric is {self.metric!r}; allowed are {', '.join(LABELS)}")
        if not self.seeds:
            raise InputError("there are no seeds; give at least one")
        for seed in self.seeds:
            check_seed(seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds are {', '.join(map(str, self.seeds))}, and one is there twice; give each once")
        if self.dev and list(self.dev) != list(self.test):
            raise InputError(
                f"dev sets are given for {', '.join(self.dev)}; give one for each of {', '.join(self.test)}"
            )
        for sets in (self.test, self.dev):
            for name, members in sets.items():
                _check_references(name, members)

    @property
    def variants(self) -> list[Variant]:
        """The pair, and the pair with the aligned small model where there is one."""
        pair = self.setup.choose_pair()
        if pair.small is None:
            raise InputError("this pair has no small model, which the paper's figures compare; name one with --small")
        names = {UNALIGNED: pair.small} | ({} if self.aligned is None else {ALIGNED: self.aligned})
        return [Variant(label, pair.large, small, self.setup.runtime) for label, small in names.items()]

    @property
    def searched(self) -> str:
        """The metric as :func:`bild.data.quality.quality_metric` reads it."""
        return f"bleu:{self.bleu_tokenizer}" if self.metric == "bleu" else self.metric

    @property
    def label(self) -> str:
        """The metric as people write it."""
        return LABELS[self.metric]

    @property
    def exit_variant(self) -> Variant | None:
        """The first layers of a model with the whole of it.

        Raises:
            InputError: not ``DIR:N``.
        """
        if self.early_exit is None:
            return None
        place, _, count = self.early_exit.rpartition(":")
        if not place or not count.isdecimal():
            raise InputError(f"the early-exit model is {self.early_exit!r}; write FOLDER:LAYERS, as in my-model:1")
        return Variant("early exit", place, f"exit:{count}", self.setup.runtime)

    def sets(self, split: str) -> Sets:
        """``"test"`` or ``"dev"``."""
        return self.dev if split == "dev" else self.test

    def describe(self) -> dict[str, Any]:
        """JSON values of everything that decides about an item."""
        data = {split: digests(self.sets(split)) for split in ("test", "dev")}
        place, _, exit_layer = (self.early_exit or "").rpartition(":")
        extra = {"early_exit": place, "calm": self.calm}
        return {
            **{variant.label: variant.describe() for variant in self.variants},
            **{name: describe_checkpoint(given) if given else None for name, given in extra.items()},
            "data": data, "metric": self.searched, "prefix": self.prefix, "seeds": list(self.seeds),
            "max_new_tokens": self.setup.max_new_tokens, "dtype": self.setup.dtype, "device": self.setup.device,
            **({"exit_layer": exit_layer} if place else {}), **self.languages,
        }  # fmt: skip

    @property
    def languages(self) -> dict[str, str]:
        """Of texts and outputs, where a multilingual checkpoint is told; most runs name none, and those of before
        should go on."""
        given = {"src_lang": self.setup.src_lang, "tgt_lang": self.setup.tgt_lang}
        return {name: language for name, language in given.items() if language is not None}


def digests(sets: Sets) -> dict[str, dict[str, Any]]:
    """Size and content hash of each set."""
    return {name: {"texts": len(members), "sha256": Data(name, list(members)).digest} for name, members in sets.items()}


def _check_references(name: str, members: Sequence[Example]) -> None:
    if not members:
        raise InputError(f"set {name!r} holds no examples; give at least one")
    for example in members:
        if not example.references:
            raise InputError(f"{name}: example {example.id} has no reference; every figure here needs one for each")
