"""PEFT adapters (LoRA and the like), merged into their base model when they are loaded."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bild.data.places import ADAPTER, beside
from bild.errors import LoadError, one_line
from bild.models.loading.pickled import PICKLED, PICKLED_INDEX, SAFE, SAFE_INDEX
from bild.models.loading.place import CONFIG, Place

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
UNMERGED = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
"""Kinds that put tokens in front of a text instead of changing weights."""
TEXT_TASKS = {None, "CAUSAL_LM", "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class Adapter:
    """What is laid over a base model.

    Args:
        place: of the adapter.
        base: name of the base model, as a checkpoint is named.
        base_revision: of the base model, where the adapter says.
    """

    place: Place
    base: str
    base_revision: str | None


def adapter_of(place: Place) -> Adapter | None:
    """The adapter in this place, None where there is a whole checkpoint.

    Raises:
        LoadError: an adapter that cannot be merged or is incomplete, or peft is not installed.
    """
    file = None if place.gguf else place.file(ADAPTER)
    if file is None:
        return None
    if place.file(CONFIG) is not None and any(place.file(each) for each in (SAFE, SAFE_INDEX, PICKLED, PICKLED_INDEX)):
        raise LoadError(
            f"{place.name} holds both a whole model and an adapter; move {ADAPTER} and the adapter's weights into a "
            "folder of their own and name the one that is meant"
        )
    values = _read(file, place.name)
    kind, task, base = (values.get(key) for key in ("peft_type", "task_type", "base_model_name_or_path"))
    if kind in UNMERGED:
        raise LoadError(f"{place.name}: a {kind} adapter changes no weights and cannot be merged; use LoRA or the like")
    if task not in TEXT_TASKS:
        raise LoadError(f"{place.name}: an adapter for {task} does not generate text; use one for CAUSAL_LM")
    if not isinstance(base, str) or not base:
        raise LoadError(f"{place.name}: {ADAPTER} names no base model; set base_model_name_or_path in it")
    if all(place.file(name) is None for name in WEIGHTS):
        raise LoadError(f"{place.name}: the adapter's weights are missing; {WEIGHTS[0]} belongs beside {ADAPTER}")
    if importlib.util.find_spec("peft") is None:
        raise LoadError(f"{place.name} is an adapter, which needs the package peft; run pip install 'bild[adapters]'")
    return Adapter(place, beside(base, file.parent), values.get("revision"))


def merge(adapter: Adapter, base: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapter's changes in its own weights.

    Raises:
        LoadError: the adapter was made for another model, or its weights are incomplete or damaged.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            laid = PeftModel.from_pretrained(base, adapter.place.root, **adapter.place.options)
            merged: PreTrainedModel = laid.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft, torch and safetensors each raise their own
        raise LoadError(
            f"{adapter.place.name}: this adapter cannot be merged into {adapter.base} ({one_line(error)})"
        ) from error
    missing = [str(each.message) for each in told if "missing adapter keys" in str(each.message)]
    if missing:
        raise LoadError(f"{adapter.place.name}: its weights are incomplete ({missing[0].splitlines()[0][:200]})")
    return merged


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{name}: {ADAPTER} cannot be read ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise LoadError(f"{name}: {ADAPTER} holds no settings of an adapter")
    return values
