"""The drafter before it is trained: layers of the large model, and a short list of its tokens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bild.data import Data
from bild.data.json_text import to_json
from bild.errors import InputError, LoadError
from bild.generation.chains import as_ids
from bild.models import load_network, resolve_device, write_short_list
from bild.models.cutting import count_layers, with_layers
from bild.models.joined import add_joined
from bild.models.loading import Outline
from bild.models.parallel import add_parallel
from bild.models.probing import disagree
from bild.training.alignment import Teacher, inputs_of, learnable
from bild.training.batches import IGNORED, Collator
from bild.training.checkpoint import writing
from bild.training.corpus import Corpus
from bild.training.drafting.fitting import TOKENS, fit_joined, fit_parallel
from bild.training.drafting.layers import Batch, choose_layers
from bild.training.drafting.room import check_room
from bild.training.drafting.shape import Shape, spaced, which_layers, written
from bild.training.drafting.short_list import most_frequent
from bild.training.labels import Labels
from bild.training.progress import say

FACTS = "beginning.json"
MEASURED = 512
"""Tokens of the large model's own texts on which layers are compared."""


@dataclass(frozen=True)
class Beginning:
    """What training begins with, made once.

    Args:
        teacher: the large model.
        shape: what was asked for.
        place: folder of the checkpoint.
        config: of the large model.
        tokenizer: likewise.
    """

    teacher: Teacher
    shape: Shape
    place: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    def make(self, data: Mapping[str, Data], folder: Path) -> None:
        """Label the prompts, then write the checkpoint; nothing where it is there.

        Args:
            data: prompts.
            folder: of the run, with its labels.

        Raises:
            InputError: no prompt that can be learnt from.
            LoadError: a model that is another one once its layers are dropped.
        """
        if self.place.exists():
            return
        corpus = self._corpus(data, folder)
        network = self._load()
        layers = choose_layers(network, self.shape, self._texts(corpus))
        encoder = self._encoder_layers(network)
        small = with_layers(network, layers, encoder)
        if self.shape.reads == "states":
            add_joined(small)
            fit_joined(small, network, self._texts(corpus, TOKENS))
            if self.shape.at_once > 1:
                add_parallel(small, self.shape.at_once)
                fit_parallel(small, network, self._texts(corpus, TOKENS))
        check_room(folder, sum(weight.numel() for weight in small.parameters()))
        ids, share = self._short_list(corpus)
        facts = {"layers": [index + 1 for index in layers], "of": count_layers(network)}
        if encoder is not None:
            facts["encoder_layers"] = [index + 1 for index in encoder]
        if ids is not None:
            facts["short_list"] = {"tokens": len(ids), "share_of_texts": share}
        self._write(small, ids, facts, self._texts(corpus)[0])
        said = f"layers {written(layers)} of {facts['of']}"
        held = "" if ids is None else f"; {len(ids):,} tokens, {share:.1%} of what it writes"
        say(f"the drafter begins with {said}{held}")

    def _corpus(self, data: Mapping[str, Data], folder: Path) -> Corpus:
        settings, corpus = self.teacher.settings, Corpus()
        coder = settings.coder(self.tokenizer, self.config)
        labels = Labels(folder, self.teacher.describe())
        places = inputs_of(data, coder, corpus)
        self.teacher.label(labels, list(places))
        coder.encode(learnable(labels, places, coder, corpus), corpus)
        if not len(corpus):
            raise InputError(f"there is nothing to learn from: {corpus.describe()}; give other prompts with --data")
        return corpus

    def _load(self) -> PreTrainedModel:
        """The large model in the number format it came in, if that is one of 16 bits."""
        named: Any = self.config.dtype
        dtype = named if named in (torch.bfloat16, torch.float16) else torch.float32
        device = resolve_device(self.teacher.settings.device)
        return load_network(
            self.teacher.large, dtype=dtype, device=device, trust_remote_code=self.teacher.trust_remote_code
        )

    def _texts(self, corpus: Corpus, tokens: int = MEASURED) -> list[Batch]:
        """Some of the texts, so many tokens, from all over the corpus, one a batch: nothing is padded."""
        start = self.config.decoder_start_token_id if self.config.is_encoder_decoder else None
        pad = self.tokenizer.pad_token_id
        collate = Collator(corpus, 0 if pad is None else pad, start)
        order = np.random.default_rng(0).permutation(len(corpus))
        batches: list[Batch] = []
        while len(batches) < len(order) and tokens > 0:
            batches.append(collate([int(order[len(batches)])]))
            tokens -= int((batches[-1]["labels"] != IGNORED).sum())
        return batches

    def _encoder_layers(self, network: PreTrainedModel) -> list[int] | None:
        if self.shape.encoder_layers is None:
            return None
        total = count_layers(network, of_encoder=True)
        asked = which_layers(self.shape.encoder_layers, total, "encoder_layers")
        return asked if isinstance(asked, list) else spaced(asked, total)

    def _short_list(self, corpus: Corpus) -> tuple[list[int] | None, float]:
        size = Outline(self.teacher.large, self.config, self.tokenizer).head_size
        wanted = self.shape.list_size(self.tokenizer, size)
        if wanted is None:
            return None, 1.0
        ends = as_ids(self.config.get_text_config(decoder=True).eos_token_id)
        texts = [[int(id) for id in target] for target in corpus.targets]
        return most_frequent(texts, wanted, self.tokenizer, size, ends)

    def _write(self, small: PreTrainedModel, ids: list[int] | None, facts: dict[str, Any], text: Batch) -> None:
        partial = self.place.with_name(self.place.name + ".partial")
        with writing(self.place):
            shutil.rmtree(partial, ignore_errors=True)
            small.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            if ids is not None:
                write_short_list(partial, ids)
            (partial / FACTS).write_text(to_json(facts, indent=2) + "\n", encoding="utf-8")
        self._check(small, partial, text)
        with writing(self.place):
            os.replace(partial, self.place)

    def _check(self, small: PreTrainedModel, place: Path, text: Batch) -> None:
        """What is read from disk must be what was written: configurations hold more about layers than we know."""
        loaded = load_network(place, dtype=small.dtype, device=small.device)
        inputs: Any = {name: each.to(small.device) for name, each in text.items() if name not in ("labels", "rows")}
        with torch.inference_mode():
            one, other = (network(**inputs, use_cache=False).logits for network in (small, loaded))
        if disagree(one[0], other[0]):
            raise LoadError(
                f"{type(small).__name__} is another model once layers are dropped; draft with ngram instead "
                "(--drafter ngram)"
            )
