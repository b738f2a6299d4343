"""How well a drafter drafts, on prompts it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bild.data import Data
from bild.decoding import Stats
from bild.generation import BigLittleDecoder
from bild.training.alignment import Teacher, inputs_of
from bild.training.corpus import Coder, Corpus
from bild.training.progress import say

MOST, SHARE = 24, 10
"""Prompts that are held out: so many, but not more than one in ten."""
LONGEST = 128
"""Tokens of a text that is drafted for."""
POLICIES = {"": "exact", "without_doubt": "exact:fallback_threshold=0:max_draft_tokens=4"}
"""Both lossless: the drafter hands over where it is in doubt, or never does before it has written four tokens."""


def split_off(data: Mapping[str, Data], coder: Coder) -> tuple[dict[str, Data], list[str]]:
    """The sets without their last few prompts, and those of them that are new and have room in the context."""
    learnt, held_out = {}, []
    for name, each in data.items():
        count = min(MOST // len(data), len(each.examples) // SHARE)
        kept = len(each.examples) - count
        learnt[name] = Data(each.name, each.examples[:kept], each.skipped)
        held_out += each.examples[kept:]
    known = {example.source for each in learnt.values() for example in each.examples}
    usable = inputs_of({"held out": Data("held out", held_out)}, coder, Corpus())
    return learnt, [source for source in usable if source not in known]


def measure(teacher: Teacher, small: Path, prompts: list[str]) -> dict[str, Any]:
    """What becomes of its drafts where the pair decodes losslessly, as plain JSON values.

    Args:
        teacher: the large model.
        small: folder of the drafter.
        prompts: at least one.
    """
    settings = teacher.settings
    decoder = BigLittleDecoder.from_pretrained(
        large=teacher.large,
        small=small,
        runtime="eager",
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=teacher.trust_remote_code,
    )
    asked = {"prefix": settings.prefix, "chat": settings.chat, **settings.languages}
    found: dict[str, Any] = {"prompts": len(prompts), "max_new_tokens": LONGEST}
    for name, policy in POLICIES.items():
        results = decoder.generate(prompts, policy, batch_size=len(prompts), max_new_tokens=LONGEST, **asked)
        stats = Stats.total(result.stats for result in results)
        length, share = stats.mean_acceptance_length, stats.acceptance_rate
        say(
            f"held out: {0.0 if length is None else length:.2f} tokens for each pass of the large model on "
            f"{len(prompts)} prompts, {0.0 if share is None else share:.0%} of what was drafted (policy {policy})"
        )
        told = {"policy": policy, "mean_acceptance_length": length, "acceptance_rate": share}
        found |= {name: told} if name else told
    return found
