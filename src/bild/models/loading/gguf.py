"""GGUF files, read by transformers and written once as a folder of safetensors, tokenizer and configuration.

In two steps: the *outline* (configuration, tokenizer, chat template, generation config) is all that is needed to
refuse a pair; the weights follow in the number format they are wanted in, for each format once.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from bild.errors import LoadError, one_line
from bild.models.loading.gguf_header import Header, read_header
from bild.models.loading.place import Place, not_there
from bild.models.loading.prepared import prepared

GENERATION = "generation_config.json"
PACKAGES = ("gguf", "accelerate")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
ENDS = ("eos", "eot", "eom")
"""Tokens that end a text, a turn and a message; llama.cpp stops at each."""
OUTLINE_BYTES = 200_000_000


def outline(place: Place) -> Place:
    """The folder with all of a GGUF file but its weights.

    Raises:
        LoadError: a missing package, a file that is cut, split or none, an architecture transformers cannot read, or
            no room for the copy.
    """
    file, header = _checked(place)
    folder = prepared(
        place.name,
        [file],
        lambda folder: _write_outline(file, header, folder, place.name),
        what="gguf",
        size=OUTLINE_BYTES,
        version=transformers.__version__,
    )
    return Place(place.name, str(folder))


def with_weights(
    place: Place, kind: type[Any], config: PreTrainedConfig, dtype: torch.dtype, check: Callable[[Any], None]
) -> Place:
    """The folder with its weights in one number format.

    Args:
        place: of the file.
        kind: class that loads it.
        config: from the outline.
        dtype: what the weights are kept in.
        check: refuses a report of ``from_pretrained`` that names missing weights.

    Raises:
        LoadError: as for :func:`outline`.
    """
    file, header = _checked(place)
    above = Path(outline(place).root)

    def write(folder: Path) -> None:
        network = _read_weights(place.name, file, kind, dtype, check)
        # The weights are plain now; transformers would refuse to save what it still takes for quantised.
        network.hf_quantizer = None
        network.config = config
        network.save_pretrained(folder)
        shutil.copyfile(above / GENERATION, folder / GENERATION)

    folder = prepared(
        place.name,
        [file],
        write,
        what=f"gguf-{str(dtype).removeprefix('torch.')}",
        size=header.num_weights * dtype.itemsize,
        version=transformers.__version__,
    )
    return Place(place.name, str(folder))


def _checked(place: Place) -> tuple[Path, Header]:
    assert place.gguf is not None
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(
            f"{place.name}: reading GGUF files needs the package {' and '.join(missing)}; run pip install 'bild[gguf]'"
        )
    part = PART.search(place.gguf)
    file = place.file(place.gguf)
    if file is None:
        raise not_there(place, FileNotFoundError(f"{place.root} has no file {place.gguf}"))
    header = read_header(file, place.name)
    if header.parts > 1 or (part is not None and int(part[2]) > 1):
        raise LoadError(
            f"{place.name} is one part of a GGUF file that was split; join the parts with llama-gguf-split --merge "
            "and name the whole file"
        )
    return file, header


def _write_outline(file: Path, header: Header, folder: Path, name: str) -> None:
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        tokenizer = AutoTokenizer.from_pretrained(**where) if header.has_tokenizer else None
    except Exception as error:  # readers of many formats, each with errors of its own
        raise LoadError(f"{name}: transformers cannot read this GGUF file ({one_line(error)})") from error
    config.save_pretrained(folder)
    generation = GenerationConfig.from_model_config(config)
    generation.eos_token_id = _ends(header, generation.eos_token_id)
    generation.save_pretrained(folder)
    if tokenizer is not None:
        # It would be looked for beside the file, which may be gone when the copy is used.
        tokenizer.init_kwargs.pop("name_or_path", None)
        tokenizer.save_pretrained(folder)


def _ends(header: Header, known: int | list[int] | None) -> int | list[int] | None:
    first = known if isinstance(known, list) else [] if known is None else [known]
    named = [header.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS]
    ends = list(dict.fromkeys([*first, *(int(id) for id in named if id is not None)]))
    return ends[0] if len(ends) == 1 else ends if ends else None


def _read_weights(name: str, file: Path, kind: type[Any], dtype: torch.dtype, check: Callable[[Any], None]) -> Any:
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    unpacked = getattr(transformers, "GgufConfig", None)
    if unpacked is not None:
        # Not left in blocks, which other kernels would have to read.
        options["quantization_config"] = unpacked(dequantize=True)
    try:
        network, report = kind.from_pretrained(str(file.parent), gguf_file=file.name, **options)
    except Exception as error:
        raise LoadError(
            f"{name}: transformers cannot read the weights of this GGUF file ({one_line(error)})"
        ) from error
    check(report)
    return network
