"""bild itself, in a process like all the others: ``POLICY@DRAFTER`` is a mode."""

from __future__ import annotations

from typing import Any

import torch
from worker_loop import Decode, Settings, main

from bild import BigLittleDecoder


def load(settings: Settings) -> tuple[Decode, dict[str, Any]]:
    """The pair, compiled."""
    torch.set_num_threads(settings["threads"])
    decoder = BigLittleDecoder.from_pretrained(
        settings.get("pair"),
        large=settings["model"],
        small=settings.get("small"),
        drafter="small" if settings.get("small") else "ngram",
        dtype=settings["format"],
        runtime=settings["runtime"],
    )

    def decode(ids: list[int], mode: str) -> list[int]:
        policy, _, drafter = mode.partition("@")
        drafting = {"drafter": drafter.replace("+", ",")} if drafter else {}
        ends = {"eos_token_id": settings["ends"], "max_new_tokens": settings["max_new_tokens"]}
        (result,) = decoder.generate([ids], policy, **ends, **drafting)
        return result.token_ids

    compiled = all(model.is_compiled for model in decoder.models)
    return decode, {"format": decoder.dtype, "compiled": compiled}


if __name__ == "__main__":
    main(load, ("torch", "transformers"))
