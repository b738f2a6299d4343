"""From one checkpoint to a pair: the large model's layers, its words and its texts make a small one.

OUT/draft.json              what the run was asked for
OUT/prompts.jsonl           what the large model was asked, where it wrote that itself
OUT/labels.jsonl            what it answered
OUT/start/                  its layers as they are, until training is done
OUT/                        the drafter: a checkpoint, short_list.json, training.json
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bild.data import Data, claim
from bild.data.files import write_whole
from bild.data.holding import Held
from bild.data.json_text import from_json, to_json
from bild.data.settings import checkpoint_digest
from bild.errors import InputError
from bild.models import load_config, load_tokenizer
from bild.models.cutting import check_droppable, count_layers
from bild.models.loading import Outline
from bild.models.loading.checkpoint import outline_network
from bild.models.loading.kinds import check_rolls_back
from bild.training.alignment import Teacher, learn
from bild.training.checkpoint import PROVENANCE, RESULT, RUN, State, finished, writing
from bild.training.drafting.beginning import FACTS, Beginning
from bild.training.drafting.held_out import measure, split_off
from bild.training.drafting.prompts import FILE as PROMPTS
from bild.training.drafting.prompts import Opening, opening_of, own_prompts
from bild.training.drafting.shape import Shape, which_layers
from bild.training.labels import FILE as LABELS
from bild.training.labels import SETTINGS as LABELS_SETTINGS
from bild.training.progress import say
from bild.training.recipe import Recipe
from bild.training.settings import Settings
from bild.training.start import Start

DRAFT, START = "draft.json", "start"
DEFAULT_TEXTS = 2000
"""Prompts the large model writes where none are given."""
LONGEST_TEXT = 256
"""Tokens of a text it writes, where nothing else is said."""


def draft(
    large: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe,
    shape: Shape | None = None,
    *,
    data: Mapping[str, Data] | None = None,
    texts: int = DEFAULT_TEXTS,
    settings: Settings | None = None,
    write_dtype: str | None = None,
    temperature: float | None = None,
    trust_remote_code: bool = False,
) -> State:
    """Make a small model that drafts for a large one.

    The same call goes on where a killed one stopped: no text is written twice.

    Args:
        large: folder, GGUF file or hub name.
        out: folder of the run and of the small model.
        recipe: how it is trained.
        shape: its layers and its short list of tokens.
        data: sets of prompts, by name; None: the large model writes its own.
        texts: how many of its own, 1…
        settings: how prompts are read, and where it computes.
        write_dtype: number format in which the large model writes, ``"int8"`` and ``"int4"`` too; None: that of the
            run.
        temperature: at which it answers prompts, above 0; None: it answers with what it finds likeliest.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: an option, a prompt or a folder that cannot be used.
        LoadError: a checkpoint that cannot be loaded, or whose layers cannot be dropped.
    """
    shape = Shape() if shape is None else shape
    settings = _settled(Settings() if settings is None else settings)
    if texts < 1 or (temperature is not None and not temperature > 0):
        raise InputError(f"texts is {texts} and temperature {temperature}; allowed is 1 or more, and more than 0")
    name, folder = os.fspath(large), Path(out)
    teacher = Teacher(name, settings, trust_remote_code, write_dtype, temperature, recipe.seed)
    config, tokenizer = _checked(teacher, shape)
    if config.is_encoder_decoder and shape.encoder_layers is None:
        recipe = replace(recipe, trains="decoder")
    opening = None if data is not None else _opening(teacher, config, tokenizer)
    told = {
        "large": {"name": name, "weights": checkpoint_digest(name)},
        "shape": shape.to_dict(),
        "prompts": {"own": texts} if data is None else {each: values.digest for each, values in data.items()},
        "seed": recipe.seed,
        "labels": teacher.describe(),
    }
    # No other process goes on with it as long as this one does.
    held = _claim(folder, told, settings.fresh)
    if (done := finished(folder)) is not None and not (folder / START).exists():
        say(f"{folder} is finished; --fresh starts anew")
        return done
    settings = replace(settings, fresh=False)
    teacher = replace(teacher, settings=settings)
    prompts = {} if data is None else data
    if opening is not None:
        prompts = {"prompts": own_prompts(folder, texts, opening, recipe.seed, lambda: teacher.decoder(texts))}
    learnt, held_out = split_off(prompts, settings.coder(tokenizer, config))
    Beginning(teacher, shape, folder / START, config, tokenizer).make(learnt, folder)
    start = Start(checkpoint=str(folder / START), trust_remote_code=trust_remote_code)
    state = learn(teacher, start, learnt, folder, recipe, {})
    _finish(folder, measure(teacher, folder, held_out) if held_out else None)
    del held
    return state


def _finish(folder: Path, held_out: dict[str, Any] | None) -> None:
    """Add to the provenance what training does not know, and drop what it began with."""
    file, start = folder / PROVENANCE, folder / START
    with writing(folder):
        facts = from_json(file.read_bytes()) | {"beginning": from_json((start / FACTS).read_bytes())}
        if held_out is not None:
            facts["held_out"] = held_out
        write_whole(file, to_json(facts, indent=2) + "\n")
        shutil.rmtree(start)


def _settled(settings: Settings) -> Settings:
    longest = LONGEST_TEXT if settings.max_target_tokens is None else settings.max_target_tokens
    return replace(settings, max_target_tokens=longest)


def _checked(teacher: Teacher, shape: Shape) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """What can be refused before a weight is read."""
    trust = teacher.trust_remote_code
    config = load_config(teacher.large, trust_remote_code=trust)
    check_rolls_back(config, teacher.large)
    tokenizer = load_tokenizer(teacher.large, trust_remote_code=trust)
    if tokenizer is None:
        raise InputError(f"{teacher.large} has no tokenizer; put it into the checkpoint's folder")
    shape.list_size(tokenizer, Outline(teacher.large, config, tokenizer).head_size)
    network = outline_network(config, teacher.large, trust)
    check_droppable(network)
    which_layers(shape.layers, count_layers(network))
    if shape.encoder_layers is not None:
        if not config.is_encoder_decoder:
            raise InputError(f"encoder_layers is {shape.encoder_layers}, but {teacher.large} has no encoder")
        which_layers(shape.encoder_layers, count_layers(network, of_encoder=True), "encoder_layers")
    return config, tokenizer


def _claim(folder: Path, told: dict[str, Any], fresh: bool) -> Held | None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

        def clear() -> None:
            for name in (DRAFT, PROMPTS, LABELS, LABELS_SETTINGS, RUN, PROVENANCE, RESULT):
                (folder / name).unlink(missing_ok=True)
            for place in (folder / START, *folder.glob("step-*")):
                shutil.rmtree(place, ignore_errors=True)

        return claim(folder / DRAFT, told, folder / RESULT, clear=clear if fresh else None)


def _opening(teacher: Teacher, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Opening:
    if config.is_encoder_decoder:
        raise InputError(
            f"{teacher.large} is an encoder-decoder, which reads texts that others wrote; give some with --data"
        )
    return opening_of(tokenizer, teacher.settings.chat)
