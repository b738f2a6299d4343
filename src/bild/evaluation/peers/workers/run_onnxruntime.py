"""ONNX Runtime by way of optimum-onnx: greedy decoding of an encoder-decoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from worker_loop import Decode, Settings, main, weight_bytes


def convert(settings: Settings) -> None:
    """Export the checkpoint; for int8, quantize the weights of its matrix products, channel by channel."""
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    model = ORTModelForSeq2SeqLM.from_pretrained(settings["checkpoint"], export=True)
    if settings["dtype"] == "float32":
        model.save_pretrained(settings["model"])
        return
    with TemporaryDirectory() as exported:
        model.save_pretrained(exported)
        for file in Path(exported).iterdir():
            _quantize(file, Path(settings["model"]) / file.name)


def _quantize(file: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if file.suffix == ".onnx":
        options = {"weight_type": QuantType.QInt8, "per_channel": True, "op_types_to_quantize": ["MatMul"]}
        quantize_dynamic(file, target, **options)
    else:
        shutil.copy(file, target)


def load(settings: Settings, tokenizer: Tokenizer) -> tuple[Decode, int]:
    """What decodes, and the bytes of its weights (the decoder's twice: optimum runs the first step by itself)."""
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    # torch only picks the likeliest token here, and its threads would take the cores of the engine's.
    torch.set_num_threads(1)
    # Without it optimum decides by the machine; on a CPU it only adds copies (53 and 58 ms a text, int8).
    model = ORTModelForSeq2SeqLM.from_pretrained(
        settings["model"], session_options=_session_options(settings["threads"]), use_io_binding=False
    )
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": settings["max_new_tokens"]}

    def decode(encoding: Any) -> list[int]:
        inputs = torch.tensor([encoding.ids])
        sequences = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
        tokens: list[int] = sequences[0, 1:].tolist()
        return tokens

    return decode, weight_bytes(settings["model"], "*.onnx")


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning take 30 ms from whoever comes next, and gain nothing: on two cores 77 ms a text
    # without and 87 with it (float32), 53 and 76 (int8).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


if __name__ == "__main__":
    main(convert, load, ("onnxruntime", "optimum-onnx", "transformers", "tokenizers"))
