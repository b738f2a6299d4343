"""Teach a pair's small model to write what the large one would: Kim et al. 2023, section 3.5.1.

The large model's greedy texts for the training inputs become the small model's targets; its distributions
too, where a recipe distills.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.data import Data
from bild.data.settings import checkpoint_digest
from bild.errors import InputError, LoadError
from bild.generation import BigLittleDecoder
from bild.generation.pair import choose_pair
from bild.models import (
    check_shared_vocabulary,
    is_part,
    load_config,
    load_network,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    round_weights,
)
from bild.training.checkpoint import State
from bild.training.corpus import WITHOUT_END, Coder, Corpus, TrainingText, pairs_of
from bild.training.job import fit
from bild.training.labels import Labels
from bild.training.progress import duration, say
from bild.training.recipe import Recipe
from bild.training.settings import Settings
from bild.training.start import Start

MANY = 500
"""Inputs from which compiling the large model pays, even if it must be done first."""


def align(
    data: Mapping[str, Data],
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    pair: str | os.PathLike[str] | None = None,
    large: str | os.PathLike[str] | None = None,
    small: str | os.PathLike[str] | None = None,
    begin: str | os.PathLike[str] | None = None,
    dev: Mapping[str, Data] | None = None,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
) -> State:
    """Label inputs with the large model, then fine-tune the small one on the labels.

    The same call goes on where a killed one stopped; no input is labelled twice.

    Args:
        data: sets of inputs, by name; targets are not looked at.
        out: folder of the run: ``labels.jsonl``, and at the end the aligned small model.
        recipe: how to fine-tune.
        pair: folder or ``bild.json`` of a pair; ``large`` and ``small`` override its checkpoints.
        large: folder or hub name of the accurate model.
        small: likewise of the cheap one.
        begin: checkpoint to fine-tune; None: the pair's small model, tuned for the task already. The
            paper compares from a pretrained one.
        dev: sets to score the small model on while it trains, by name.
        settings: how to watch it, and where it computes.
        trust_remote_code: whether code that comes with a checkpoint may run.

    Raises:
        InputError, LoadError, VocabularyError: see :mod:`bild.errors`.
    """
    settings = Settings() if settings is None else settings
    chosen = choose_pair(pair, large, small)
    if begin is None and is_part(chosen.cheap):
        raise InputError(f"the small model is {chosen.small}, a part of the large one; name one of its own with --from")
    start = Start(checkpoint=os.fspath(begin or chosen.cheap), trust_remote_code=trust_remote_code)
    _check_pair(chosen.large, start)
    teacher = Teacher(chosen.large, settings, trust_remote_code)
    return learn(teacher, start, data, out, recipe, {} if dev is None else dev)


def learn(
    teacher: Teacher,
    start: Start,
    data: Mapping[str, Data],
    out: str | os.PathLike[str],
    recipe: Recipe,
    dev: Mapping[str, Data],
) -> State:
    """Label inputs by a teacher, then train a network on the labels; see :func:`align`."""
    settings = teacher.settings
    told = {
        "start": asdict(start),
        "data": {name: each.digest for name, each in data.items()},
        "labels": teacher.describe(),
    }
    labels = Labels(Path(out), teacher.describe(), fresh=settings.fresh)

    def corpus_of(coder: Coder) -> Corpus:
        corpus = Corpus()
        places = inputs_of(data, coder, corpus)
        teacher.label(labels, list(places))
        coder.encode(learnable(labels, places, coder, corpus), corpus)
        return corpus

    def tokenizer_of(_: Path) -> PreTrainedTokenizerBase:
        return start.load_tokenizer()

    return fit(start, out, recipe, tokenizer_of, corpus_of, told, teacher_of=teacher.load, dev=dev, settings=settings)


@dataclass(frozen=True)
class Teacher:
    """A large model that writes the targets of a smaller one.

    Args:
        large: folder, GGUF file or hub name.
        settings: of the run: how it reads inputs, where it computes, how long its texts may be.
        trust_remote_code: whether code that comes with the checkpoint may run.
        dtype: number format it writes in, ``"int8"`` and ``"int4"`` too; None: that of the run.
        temperature: of draws, above 0; None: it writes what it finds likeliest.
        seed: of draws.
    """

    large: str
    settings: Settings
    trust_remote_code: bool = False
    dtype: str | None = None
    temperature: float | None = None
    seed: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """Options of ``generate``."""
        settings = self.settings
        asked: dict[str, Any] = {
            "prefix": settings.prefix,
            "chat": settings.chat,
            "max_new_tokens": settings.max_target_tokens,
        }
        if self.temperature is not None:
            asked |= {"do_sample": True, "temperature": self.temperature, "seed": self.seed}
        return asked | settings.languages

    def describe(self) -> dict[str, Any]:
        """What labels depend on, as plain JSON values."""
        dtype = self.settings.dtype if self.dtype is None else self.dtype
        return {"large": self.large, "weights": checkpoint_digest(self.large), "dtype": dtype, **self.asked}

    def load(self) -> PreTrainedModel:
        """The network, in the number format of the run."""
        return self._load(self.settings.dtype)

    def decoder(self, inputs: int) -> BigLittleDecoder:
        """The network as a decoder of so many inputs; compiled where they are many."""
        dtype = self.settings.dtype if self.dtype is None else self.dtype
        network = round_weights(self._load(dtype), dtype)
        tokenizer = load_tokenizer(self.large, trust_remote_code=self.trust_remote_code)
        return BigLittleDecoder(network, network, tokenizer, runtime="static" if inputs >= MANY else "eager")

    def _load(self, dtype: str) -> PreTrainedModel:
        device = resolve_device(self.settings.device)
        return load_network(
            self.large,
            dtype=resolve_dtype(dtype, device),
            device=device,
            trust_remote_code=self.trust_remote_code,
        )

    def label(self, labels: Labels, sources: list[str]) -> None:
        """Write what it makes of inputs that have no label yet."""

        def progress(done: int, total: int, tokens_per_second: float, seconds_left: float) -> None:
            say(f"labelled {done}/{total} · {tokens_per_second:,.0f} tokens/s · {duration(seconds_left)} left")

        # By the number of all inputs: what a killed run goes on with is computed as it began.
        labels.make(sources, lambda: self.decoder(len(sources)), progress, **self.asked)
        say(f"labels: {len(sources)} in {labels.file}")


def _check_pair(large: str, start: Start) -> None:
    """Whether one model can learn from the other; before hours of labelling, not after."""
    trust = start.trust_remote_code
    configs = [load_config(name, trust_remote_code=trust) for name in (large, str(start.checkpoint))]
    if configs[0].is_encoder_decoder != configs[1].is_encoder_decoder:
        raise LoadError("one of the models is encoder-decoder and the other decoder-only; use two of one kind")
    sizes = [config.get_text_config(decoder=True).vocab_size for config in configs]
    tokenizer = load_tokenizer(large, trust_remote_code=trust)
    check_shared_vocabulary(tokenizer, start.load_tokenizer(), *sizes)


def inputs_of(data: Mapping[str, Data], coder: Coder, corpus: Corpus) -> dict[str, str]:
    """Each input once, and where it is from; what cannot be labelled is counted."""
    places: dict[str, str] = {}
    for name, each in data.items():
        # A target is not needed here and its absence no fault.
        sources = Data(name, [replace(example, references=("",)) for example in each.examples], each.skipped)
        for pair in pairs_of({name: sources}, corpus):
            if pair.source in places:
                corpus.leave_out(pair.place, "duplicate")
            else:
                places[pair.source] = pair.place
    lengths = coder.source_lengths(list(places))
    for source, length in zip(list(places), lengths, strict=True):
        if reason := coder.too_long(length, 1):
            corpus.leave_out(places.pop(source), reason)
    return places


def learnable(labels: Labels, places: dict[str, str], coder: Coder, corpus: Corpus) -> Iterator[TrainingText]:
    """Inputs and their labels, without loops: an encoder-decoder's text that never ends is one. A
    decoder-only model's continuation may be cut anywhere."""
    for source, place in places.items():
        label = labels.by_source[source]
        if label.finish_reason == "length" and coder.config.is_encoder_decoder:
            corpus.leave_out(place, WITHOUT_END)
        else:
            yield TrainingText(place, source, label.token_ids)
