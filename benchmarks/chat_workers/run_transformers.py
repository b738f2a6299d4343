"""transformers' own generate(): greedy, prompt lookup, and assisted by a small model or by its own first layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from worker_loop import Decode, Settings, main


def load(settings: Settings) -> tuple[Decode, dict[str, Any]]:
    """The model, and the assistant where one is named."""
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["format"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
    small = settings.get("small")
    assistant = AutoModelForCausalLM.from_pretrained(small, dtype=dtype).eval() if small else None
    common = {"do_sample": False, "max_new_tokens": settings["max_new_tokens"], "eos_token_id": settings["ends"],
              "pad_token_id": settings["ends"][0]}  # fmt: skip

    def decode(ids: list[int], mode: str) -> list[int]:
        prompt = torch.tensor([ids])
        given: dict[str, Any] = dict(common)
        if mode.startswith("lookup"):
            given |= {"prompt_lookup_num_tokens": int(mode[6:]), "max_matching_ngram_size": 3}
        elif mode == "assisted":
            given |= {"assistant_early_exit": 8} if assistant is None else {"assistant_model": assistant}
        with torch.inference_mode():
            written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **given)
        tokens: list[int] = written[0, len(ids) :].tolist()
        return tokens

    return decode, {"format": settings["format"]}


if __name__ == "__main__":
    main(load, ("transformers", "torch"))
