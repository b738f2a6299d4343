"""llama.cpp by way of llama-cpp-python: greedy, with or without prompt lookup."""

from __future__ import annotations

from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from worker_loop import Decode, Settings, main


def load(settings: Settings) -> tuple[Decode, dict[str, Any]]:
    """The model; one that looks up must be loaded so, for it keeps the scores of all tokens."""
    lookup = settings["mode"].startswith("lookup")
    drafter = LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=int(settings["mode"][6:])) if lookup else None
    model = Llama(
        settings["model"],
        n_ctx=2048,
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        draft_model=drafter,
        logits_all=lookup,
        verbose=False,
    )

    def decode(ids: list[int], mode: str) -> list[int]:
        # Every prompt is read whole: what the last one shares with it must not help.
        model.reset()
        tokens: list[int] = []
        for token in model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
            tokens.append(int(token))
            if token in settings["ends"] or len(tokens) == settings["max_new_tokens"]:
                return tokens
        return tokens

    return decode, {}


if __name__ == "__main__":
    main(load, ("llama-cpp-python",))
