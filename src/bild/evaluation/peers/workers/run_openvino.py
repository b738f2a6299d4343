"""OpenVINO by way of optimum-intel: greedy decoding of an encoder-decoder."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from worker_loop import Decode, Settings, main, weight_bytes

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calculates in; int8 weights leave the choice to OpenVINO."""


def convert(settings: Settings) -> None:
    """Export the checkpoint; for int8, compress its weights."""
    from optimum.intel import OVModelForSeq2SeqLM

    model = OVModelForSeq2SeqLM.from_pretrained(
        settings["checkpoint"], export=True, compile=False, load_in_8bit=settings["dtype"] == "int8"
    )
    model.save_pretrained(settings["model"])


def load(settings: Settings, tokenizer: Tokenizer) -> tuple[Decode, int]:
    """What decodes, and the bytes of its weights as they are stored."""
    import torch
    from optimum.intel import OVModelForSeq2SeqLM

    # torch only picks the likeliest token here, and its threads would take the cores of the engine's.
    torch.set_num_threads(1)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": settings["threads"]}
    if settings["dtype"] in PRECISIONS:
        hints["INFERENCE_PRECISION_HINT"] = PRECISIONS[settings["dtype"]]
    model = OVModelForSeq2SeqLM.from_pretrained(settings["model"], ov_config=hints)
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": settings["max_new_tokens"]}

    def decode(encoding: Any) -> list[int]:
        inputs = torch.tensor([encoding.ids])
        sequences = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
        tokens: list[int] = sequences[0, 1:].tolist()
        return tokens

    return decode, weight_bytes(settings["model"], "*.bin")


if __name__ == "__main__":
    main(convert, load, ("openvino", "optimum-intel", "nncf", "transformers", "tokenizers"))
