"""OpenVINO GenAI on a GGUF file: greedy, with or without prompt lookup."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker_loop import Decode, Settings, main


def load(settings: Settings) -> tuple[Decode, dict[str, Any]]:
    """The pipeline; one that looks up is another one."""
    lookup = settings["mode"].startswith("lookup")
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": settings["threads"]}
    if lookup:
        hints["prompt_lookup"] = True
    pipeline = genai.LLMPipeline(settings["model"], "CPU", **hints)
    asked = genai.GenerationConfig()
    asked.max_new_tokens, asked.do_sample = settings["max_new_tokens"], False
    asked.stop_token_ids = set(settings["ends"])
    if lookup:
        asked.num_assistant_tokens, asked.max_ngram_size = int(settings["mode"][6:]), 3

    def decode(ids: list[int], mode: str) -> list[int]:
        prompt = ov.Tensor(np.array([ids], dtype=np.int64))
        seen = ov.Tensor(np.ones((1, len(ids)), dtype=np.int64))
        return [int(token) for token in pipeline.generate(genai.TokenizedInputs(prompt, seen), asked).tokens[0]]

    return decode, {}


if __name__ == "__main__":
    main(load, ("openvino-genai", "openvino"))
