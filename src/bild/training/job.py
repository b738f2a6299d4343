"""Fine-tune a network on source and target texts, or train one from nothing."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.data import Data
from bild.errors import InputError
from bild.machine import describe_machine
from bild.models import load_network, read_short_list, resolve_device, resolve_dtype
from bild.models.compiled.compiling import has_compiler
from bild.models.short_list import digest_of
from bild.training.batches import UNBOUNDED, Batches, Collator
from bild.training.checkpoint import Resumed, RunFolder, State
from bild.training.corpus import WITHOUT_END, Coder, Corpus, pairs_of
from bild.training.dev import DevScore
from bild.training.loop import Horizon, Plan, run
from bild.training.losses import Objective
from bild.training.progress import Progress, duration, say
from bild.training.recipe import Recipe
from bild.training.recording import pays
from bild.training.settings import Settings
from bild.training.start import Start
from bild.training.vocabulary import kept_tokenizer

LONG_RUN = 1000
LONG_MINUTES = 10
"""Steps and time from which compiling, a minute or two, pays for itself."""
EVAL_EVERY = 500
"""Steps between dev scores where nobody knows how many there will be."""
DEV_TOKENS = 128
"""Longest text of a dev score where nothing else is said."""


def train(
    start: Start,
    data: Mapping[str, Data],
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    dev: Mapping[str, Data] | None = None,
    settings: Settings | None = None,
) -> State:
    """Train a network; the same call goes on where a killed one stopped.

    Args:
        start: the network's beginning.
        data: sets of source and target texts, by name.
        out: folder of the run; at the end also a checkpoint with the best weights, or without ``dev`` the last.
        recipe: how to train.
        dev: sets to score the network on while it trains, by name.
        settings: how to watch it, and where it computes.

    Returns:
        What the run came to: steps, seconds, dev scores.

    Raises:
        InputError: an option, a text or a folder that cannot be used.
        LoadError: a checkpoint that cannot be loaded.
    """
    settings = Settings() if settings is None else settings
    told = {"start": asdict(start), "data": {name: values.digest for name, values in data.items()}}

    def corpus_of(coder: Coder) -> Corpus:
        corpus = Corpus()
        coder.encode(pairs_of(data, corpus), corpus)
        return corpus

    def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
        if start.vocab_size is None:
            return start.load_tokenizer()
        examples = (example for each in data.values() for example in each.examples)
        texts = (text for example in examples for text in (settings.prefix + example.source, *example.references))
        return kept_tokenizer(folder, texts, start.vocab_size)

    return fit(start, out, recipe, tokenizer_of, corpus_of, told, dev={} if dev is None else dev, settings=settings)


def fit(
    start: Start,
    out: str | os.PathLike[str],
    recipe: Recipe,
    tokenizer_of: Callable[[Path], PreTrainedTokenizerBase],
    corpus_of: Callable[[Coder], Corpus],
    told: dict[str, Any],
    *,
    dev: Mapping[str, Data],
    settings: Settings,
    teacher_of: Callable[[], PreTrainedModel] | None = None,
) -> State:
    """Train a network on any corpus.

    Args:
        start: the network's beginning.
        out: folder of the run.
        recipe: how to train.
        tokenizer_of: loads or makes the tokenizer of a run in a folder.
        corpus_of: makes what is trained on; not called for a run that is finished.
        told: what the corpus and the beginning depend on, as plain JSON values.
        dev: sets to score the network on, by name; may be empty.
        settings: how to watch it, and where it computes.
        teacher_of: loads the network to learn distributions from; called where the recipe distills.
    """
    recipe = recipe.for_weights(trained=start.trained)
    told = told | {
        "dev": {name: values.digest for name, values in dev.items()},
        "recipe": recipe.to_dict(),
        "settings": settings.describe(),
    }
    short_list = None if start.checkpoint is None else read_short_list(start.checkpoint)
    if short_list is not None:
        told["short_list"] = {"tokens": len(short_list), "sha256": digest_of(short_list)}
    folder = RunFolder(Path(out), told, fresh=settings.fresh, short_list=short_list)
    if (done := folder.finished()) is not None:
        say(f"{out} is finished; --fresh starts anew")
        return done
    tokenizer, device = tokenizer_of(folder.path), resolve_device(settings.device)
    config = start.load_config(tokenizer, recipe)
    corpus = corpus_of(settings.coder(tokenizer, config))
    say(f"data: {corpus.describe()}")
    if not len(corpus):
        way = "allowed are rows with a text in --source-column and in --target-column"
        if WITHOUT_END in corpus.left_out:
            way = "raise --max-target-tokens, or take a large model that ends its texts"
        raise InputError(f"there is nothing to train on: {corpus.describe()}; {way}")
    resumed = Resumed.newest(folder)
    if resumed is None:
        network = start.load_network(config, tokenizer, recipe, device)
    else:
        network = load_network(resumed.place, dtype=torch.float32, device=device, trainable=True)
    facts = {"arguments": dict(settings.arguments), **told, "examples": corpus.facts(), "machine": describe_machine()}
    teacher = teacher_of() if recipe.distill and teacher_of is not None else None
    scored = None if short_list is None else torch.tensor(short_list)
    objective = Objective(network, recipe, resolve_dtype(settings.dtype, device), teacher, scored)
    return Job(objective, tokenizer, corpus, folder, recipe, settings, facts, start.dtype(), dev).run(resumed)


class Job:
    """One network being trained in one folder.

    Args:
        objective: what to minimise, of a network in float32 on its device.
        tokenizer: of the network.
        corpus: what it is trained on.
        folder: of the run.
        recipe: with its learning rate settled.
        settings: of the run.
        facts: provenance, plain JSON values.
        came_in: number format the result is saved in where the settings say ``"auto"``.
        dev: sets to score it on, by name.
    """

    def __init__(
        self,
        objective: Objective,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        folder: RunFolder,
        recipe: Recipe,
        settings: Settings,
        facts: dict[str, Any],
        came_in: torch.dtype,
        dev: Mapping[str, Data],
    ) -> None:
        self.objective, self.tokenizer, self.corpus = objective, tokenizer, corpus
        self.network = network = objective.network
        self.folder, self.recipe, self.settings, self.facts = folder, recipe, settings, facts
        self.saved_as = came_in if settings.save_dtype == "auto" else resolve_dtype(settings.save_dtype)
        # Who asks for compiled layers gets them instead.
        self.is_recorded = not settings.compile and pays(objective)
        joined = not network.config.is_encoder_decoder
        self.batches = Batches(corpus, recipe, joined=joined, few_shapes=self.is_recorded)
        self.steps = self.batches.steps()
        self.progress = Progress(folder, None if self.steps == UNBOUNDED else self.steps)
        self.state = State()
        longest = DEV_TOKENS if settings.max_target_tokens is None else settings.max_target_tokens
        options: dict[str, Any] = {"prefix": settings.prefix, "chat": settings.chat, "max_new_tokens": longest}
        options |= settings.languages
        self.dev = DevScore(dev, settings.metric, dtype=objective.dtype, **options) if dev else None

    def run(self, resumed: Resumed | None) -> State:
        """Train to the end and save the result."""
        if resumed is not None:
            self.state = resumed.state
            self.folder.forget_log_after(self.state)
            say(f"going on from step {self.progress.at(self.state.step)}")
        if self._compiles():
            say("the first steps compile the layers, a minute or two")
            self.objective.compile_layers()
        is_over = Horizon(self.steps, self.recipe.max_minutes, self.state).is_reached()
        if not is_over and not self._out_of_patience():
            run(self.objective, self._plan(), self.state, resumed, self.network.device)
        if self.dev is None:
            self._save_result()
        elif not self.state.scores or self.state.scores[-1]["step"] != self.state.step:
            self._score()
        self.state.finished = True
        self.folder.finish(self._provenance())
        took = duration(self.state.seconds)
        best = f", best dev score {self.state.best:.2f} at step {self.state.best_step}" if self.state.best else ""
        say(f"done: {self.state.step} steps in {took}{best}; checkpoint in {self.folder.path}")
        return self.state

    def _plan(self) -> Plan:
        config = self.network.config
        start = config.decoder_start_token_id if config.is_encoder_decoder else None
        pad = 0 if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        every = self.settings.eval_every
        if every is None:
            every = EVAL_EVERY if self.steps == UNBOUNDED else max(100, self.steps // 20)
        return Plan(
            folder=self.folder.path,
            recipe=self.recipe,
            steps=self.steps,
            batches=self.batches.remaining(self.state.step, self.steps),
            collate=Collator(self.corpus, pad, start, self.batches.capacity if self.is_recorded else None),
            places=self.corpus.places,
            log_every=self.settings.log_every,
            eval_every=None if self.dev is None else every,
            save_minutes=self.settings.save_minutes,
            is_recorded=self.is_recorded,
            on_log=self.progress.logged,
            on_eval=self._score,
            on_save=self._save_state,
        )

    def _compiles(self) -> bool:
        if self.settings.compile is not None:
            return self.settings.compile
        minutes = self.recipe.max_minutes
        is_long = self.steps >= LONG_RUN and (minutes is None or minutes >= LONG_MINUTES)
        return is_long and not self.is_recorded and (self.network.device.type == "cuda" or has_compiler())

    def _score(self) -> bool:
        """Score the network, keep it if it is the best; whether to stop."""
        assert self.dev is not None
        state, scores = self.state, self.dev(self.network, self.tokenizer)
        mean = sum(scores.values()) / len(scores)
        best = state.best is None or mean > state.best
        score = {"step": state.step, "metric": self.settings.metric, "sets": scores, "mean": mean}
        state.scores.append(score)
        if best:
            state.best, state.best_step, state.worse = mean, state.step, 0
            self._save_result()
        else:
            state.worse += 1
        self.progress.scored(score, best=best)
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.state.worse >= self.settings.patience

    def _save_result(self) -> None:
        saved: Any = copy.deepcopy(self.network)
        self.folder.save_result(saved.to(self.saved_as), self.tokenizer, self._provenance())

    def _save_state(self, optimizer: Optimizer) -> None:
        self.folder.save_state(self.network, self.tokenizer, optimizer, self.state, self._provenance())

    def _provenance(self) -> dict[str, Any]:
        return {**self.facts, "state": asdict(self.state)}
