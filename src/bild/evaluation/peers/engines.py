"""Engines in environments of their own: convert the large checkpoint once, then ask a worker."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bild.data.json_text import from_json
from bild.errors import LoadError, one_line
from bild.evaluation.method import MethodSpec, PeerContext
from bild.evaluation.peers.environment import (
    REQUIREMENTS,
    building,
    cache_folder,
    clean_variables,
    digest,
    prepare_environment,
)
from bild.evaluation.peers.options import one_of, read_options
from bild.evaluation.peers.worker import WorkerPeer, last_line

WORKERS = Path(__file__).parent / "workers"
ENGINES: dict[str, dict[str, str]] = {
    "ctranslate2": {
        "float32": "float32",
        "int8": "int8",
        "bfloat16": "bfloat16",
        "int8_bfloat16": "int8_bfloat16",
    },
    "onnxruntime": {"float32": "float32", "int8": "int8"},
    "openvino": {"float32": "float32", "bfloat16": "float32", "int8": "int8"},
}
"""The dtypes of each engine, the first being the default, and the format its model is stored in for each."""
FILES = ("*.json", "*.safetensors", "*.model", "*.spm")


def load_engine(spec: MethodSpec, context: PeerContext) -> WorkerPeer:
    """``ctranslate2:dtype=…``, ``onnxruntime:dtype=…`` or ``openvino:dtype=…``: greedy decoding of the large model.

    Raises:
        InputError: an unknown option or dtype.
        LoadError: another device than the CPU, a checkpoint the engine cannot run, or an environment that cannot
            be made.
    """
    stored = ENGINES[spec.name]
    dtype = read_options(spec, {"dtype": one_of(*stored)}).get("dtype", next(iter(stored)))
    if context.device != "cpu":
        raise LoadError(f"runs on the CPU only here, and the device is {context.device}")
    if context.src_lang is not None or context.tgt_lang is not None:
        raise LoadError("runs without src_lang and tgt_lang only, which this engine is not told here")
    python, model = converted(spec.name, context.large, dtype, context.threads)
    asked = {"checkpoint": str(_local(context.large)), "dtype": dtype, "threads": context.threads}
    asked |= {"model": str(model), "max_new_tokens": context.max_new_tokens}
    return WorkerPeer(spec.text, _command(python, spec.name, "serve", asked), _variables(context.threads))


def converted(engine: str, checkpoint: str, dtype: str, threads: int) -> tuple[Path, Path]:
    """The Python of an engine's environment, and a checkpoint in the engine's own format; both made on first use.

    Args:
        engine: of :data:`ENGINES`.
        checkpoint: folder or hub name.
        dtype: one of the engine's.
        threads: for converting, 1…

    Raises:
        LoadError: a checkpoint the engine cannot run, or an environment that cannot be made.
    """
    folder = _local(checkpoint)
    _check(folder)
    python = prepare_environment(engine)
    asked = {"checkpoint": str(folder), "dtype": ENGINES[engine][dtype], "threads": threads}
    return python, _converted(engine, python, folder, asked)


def _command(python: Path, engine: str, task: str, asked: dict[str, Any]) -> list[str]:
    return [str(python), str(WORKERS / f"run_{engine}.py"), task, json.dumps(asked)]


def _variables(threads: int) -> dict[str, str]:
    # Everything is on this machine by now; and a second pool of threads would only get into the first one's way.
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _local(name: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is a name there."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub raises many kinds, and says what happened in the first line
        raise LoadError(f"{name} cannot be fetched ({one_line(error)})") from None


def _check(checkpoint: Path) -> None:
    try:
        config = from_json((checkpoint / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise LoadError(f"{checkpoint / 'config.json'} cannot be read ({one_line(error)})") from None
    if not config.get("is_encoder_decoder", False):
        raise LoadError(f"runs encoder-decoder checkpoints only here, and {checkpoint.name} is decoder-only")
    if not (checkpoint / "tokenizer.json").is_file():
        raise LoadError(f"{checkpoint.name} has no tokenizer.json, which its tokens are read from")


def _converted(engine: str, python: Path, checkpoint: Path, asked: dict[str, Any]) -> Path:
    """The checkpoint in the engine's own format, converted on first use."""
    files = sorted(path for pattern in FILES for path in checkpoint.glob(pattern))
    marks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    sources = [REQUIREMENTS / f"{engine}.txt", *sorted(WORKERS.glob("*.py"))]
    key = digest(json.dumps(marks).encode() + b"".join(source.read_bytes() for source in sources))
    folder = cache_folder() / "models" / f"{engine}-{asked['dtype']}-{key}"
    if not folder.is_dir():
        print(f"{engine}: converting {checkpoint} into {folder} (once)", file=sys.stderr)
        with building(folder) as place:
            _convert(_command(python, engine, "convert", asked | {"model": str(place)}), asked["threads"])
    return folder


def _convert(command: list[str], threads: int) -> None:
    variables = clean_variables() | _variables(threads)
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, env=variables)
        if done.returncode:
            raise LoadError(f"the checkpoint cannot be converted ({last_line(log)})")
