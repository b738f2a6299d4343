"""ONNX Runtime GenAI: greedy, with or without its n-grams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
from worker_loop import Decode, Settings, main


def load(settings: Settings) -> tuple[Decode, dict[str, Any]]:
    """The model with so many threads, which its configuration names."""
    config = og.Config(settings["model"])
    options = {"intra_op_num_threads": settings["threads"], "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def decode(ids: list[int], mode: str) -> list[int]:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(ids) + settings["max_new_tokens"])
        if mode.startswith("lookup"):
            params.set_speculative_options(ngram_size=3, max_draft_tokens=int(mode[6:]))
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(ids) :]]

    return decode, {"format": Path(settings["model"]).name}


if __name__ == "__main__":
    main(load, ("onnxruntime-genai", "onnxruntime"))
