"""CTranslate2: greedy decoding of an encoder-decoder."""

from __future__ import annotations

import threading
from typing import Any

from worker_loop import Decode, Settings, main, weight_bytes


def convert(settings: Settings) -> None:
    """Write the checkpoint in CTranslate2's format, its weights in the dtype they are computed with."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(settings["checkpoint"]).convert(settings["model"], quantization=settings["dtype"], force=True)


def load(settings: Settings, tokenizer: Any) -> tuple[Decode, int]:
    """What decodes, and the bytes of its weights."""
    translator = _translator(settings)
    options = {"beam_size": 1, "max_decoding_length": settings["max_new_tokens"], "max_input_length": 0}

    def decode(encoding: Any) -> list[int]:
        (result,) = translator.translate_batch([encoding.tokens], return_end_token=True, **options)
        return [tokenizer.token_to_id(token) for token in result.hypotheses[0]]

    return decode, weight_bytes(settings["model"], "*.bin")


def _translator(settings: Settings) -> Any:
    """Loaded in a thread that ends.

    The thread that loads keeps a team of OpenMP threads. Beside the team that decodes these are more than the
    machine has cores, so libgomp no longer lets waiting threads spin, and each of some hundred waits a text
    becomes two system calls: 340 instead of 35 ms a text (float32), 255 instead of 19 (int8).
    """
    import ctranslate2

    options = {"device": "cpu", "compute_type": settings["dtype"], "intra_threads": settings["threads"]}
    loaded: list[Any] = []

    def load_model() -> None:
        try:
            loaded.append(ctranslate2.Translator(settings["model"], inter_threads=1, **options))
        except Exception as error:  # raised again by the caller
            loaded.append(error)

    thread = threading.Thread(target=load_model)
    thread.start()
    thread.join()
    if isinstance(loaded[0], Exception):
        raise loaded[0]
    return loaded[0]


if __name__ == "__main__":
    main(convert, load, ("ctranslate2", "tokenizers"))
