"""Chat engines in environments of their own: what each needs, what it reads, how it may be set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bild.errors import LoadError
from bild.evaluation import Output
from bild.evaluation.peers.environment import building, cache_folder, clean_variables, digest
from bild.evaluation.peers.worker import WorkerPeer, last_line

WORKERS = Path(__file__).resolve().parent / "chat_workers"
REQUIREMENTS = WORKERS / "requirements"
LOOKUP = ("lookup5", "lookup10")
"""Prompt lookup with so many tokens."""


@dataclass(frozen=True)
class Engine:
    """An engine with a model in one format: a peer.

    Args:
        peer: its name in the results.
        worker: script in ``chat_workers``, without ``run_``; also its environment.
        format: of the weights.
        modes: ways of decoding; the fastest counts.
        reloads: whether each mode needs a process of its own.
    """

    peer: str
    worker: str
    format: str
    modes: tuple[str, ...]
    reloads: bool = False

    def rows(self) -> dict[str, str]:
        """Names of its rows and their modes."""
        return {self.peer if mode == "greedy" else f"{self.peer}:{mode}": mode for mode in self.modes}


ENGINES = [
    Engine("llama.cpp-q8_0", "llama_cpp", "q8_0", ("greedy", *LOOKUP), reloads=True),
    Engine("llama.cpp-q4_1", "llama_cpp", "gguf", ("greedy", *LOOKUP), reloads=True),
    Engine("openvino-genai-int8", "openvino_genai", "q8_0", ("greedy", *LOOKUP), reloads=True),
    Engine("onnxruntime-genai-int8", "onnxruntime_genai", "int8", ("greedy", *LOOKUP)),
    Engine("onnxruntime-genai-int4", "onnxruntime_genai", "int4", ("greedy", *LOOKUP)),
    Engine("transformers", "transformers", "bfloat16", ("greedy", "assisted", "lookup10")),
]
"""The peers. ``gguf`` is the file as it was given."""
OWN = "bild"
Q8_0, Q8_0_BLOCK = "model-q8_0.gguf", 32


@dataclass
class Workshop:
    """Makes environments and model files, once each, and starts workers.

    Args:
        large: folder or GGUF file of the model.
        small: the same of a drafter; None: there is none.
        pythons: by worker, environments that are there already.
        dtype: of bild's own rows.
        runtime: likewise.
    """

    large: str
    small: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "int8"
    runtime: str = "static"

    @property
    def checkpoint(self) -> Path:
        """The large model as a folder that transformers reads."""
        if Path(self.large).is_dir():
            return Path(self.large).resolve()
        return self._made("checkpoint", _plain)

    def python(self, worker: str) -> str:
        """The Python of a worker's environment.

        Raises:
            LoadError: an installation that failed.
        """
        if worker in (OWN, "transformers"):
            return sys.executable
        if worker in self.pythons:
            return self.pythons[worker]
        requirements = REQUIREMENTS / f"{worker}.txt"
        name = f"{worker}-py{sys.version_info.major}.{sys.version_info.minor}-{digest(requirements.read_bytes())}"
        folder = cache_folder() / "environments" / name
        if not folder.is_dir():
            say(f"{worker}: installing its own environment into {folder} (once)")
            with building(folder) as place:
                venv.create(place, with_pip=True)
                _run([str(place / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
        return str(folder / "bin/python")

    def model(self, engine: Engine) -> str:
        """The file or folder that an engine reads, made on first use.

        Raises:
            LoadError: the model cannot be had in this format.
        """
        if engine.worker in ("llama_cpp", "openvino_genai"):
            if not self.large.endswith(".gguf"):
                raise LoadError("reads GGUF files, and the model is none")
            return self.large if engine.format == "gguf" else str(self._made("q8_0", _q8_0) / Q8_0)
        if engine.worker == "onnxruntime_genai":
            return str(self._made(f"onnxruntime-{engine.format}", self._onnx(engine)))
        return str(self.checkpoint)

    def start(self, engine: Engine, mode: str, threads: int, asked: Mapping[str, Any]) -> WorkerPeer:
        """A worker that is ready.

        Raises:
            LoadError: it cannot be started, and why.
        """
        own = engine.worker == OWN
        settings = {"model": self.large if own else self.model(engine), "format": engine.format, "mode": mode}
        settings |= {"threads": threads, "runtime": self.runtime, "small": self.small, **asked}
        command = [self.python(engine.worker), str(WORKERS / f"run_{engine.worker}.py"), json.dumps(settings)]
        variables = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if own:
            variables["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        return WorkerPeer(engine.peer, command, variables)

    def _made(self, name: str, make: Any) -> Path:
        source = Path(self.large).resolve()
        key = digest(f"{source} {source.stat().st_mtime_ns}".encode())
        path = cache_folder() / "models" / f"chat-{key}" / name
        if not path.is_dir():
            say(f"making {path} (once)")
            with building(path) as place:
                make(self.large, place)
        return path

    def _onnx(self, engine: Engine) -> Any:
        def make(large: str, place: Path) -> None:
            # The converter wants torch and transformers, which are here.
            borrowed = {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
            command = [self.python(engine.worker), "-m", "onnxruntime_genai.models.builder", "-i", str(self.checkpoint)]
            command += ["-o", str(place), "-p", engine.format, "-e", "cpu", "-c", str(place / "cache")]
            _run([*command, "--extra_options", "accuracy_level=4"], borrowed)

        return make


@dataclass
class Row:
    """One mode of a worker as a method of an evaluation; a source is a prompt's token ids as JSON."""

    name: str
    worker: WorkerPeer
    mode: str
    weight_bytes: int | None = None

    def __call__(self, source: str) -> Output:
        return self.worker(json.dumps({"ids": json.loads(source), "mode": self.mode}))

    @property
    def details(self) -> dict[str, Any]:
        """What the worker says of itself."""
        return self.worker.details

    def close(self) -> None:
        self.worker.close()


def say(line: str) -> None:
    """To stderr: stdout has the table and the result."""
    print(line, file=sys.stderr, flush=True)


def _plain(large: str, place: Path) -> None:
    """The checkpoint as a folder of safetensors, by our own loader."""
    from bild import BigLittleDecoder

    decoder = BigLittleDecoder.from_pretrained(large=large, drafter="ngram", dtype="bfloat16", runtime="eager")
    decoder.large.network.save_pretrained(place)
    assert decoder.tokenizer is not None
    decoder.tokenizer.save_pretrained(place)


def _q8_0(large: str, place: Path) -> None:
    """The same weights in blocks of 8 bits, as llama.cpp's Q8_0 has them."""
    import gguf

    kinds, values = gguf.GGMLQuantizationType, gguf.GGUFValueType
    reader = gguf.GGUFReader(large)
    writer = gguf.GGUFWriter(place / Q8_0, str(reader.fields["general.architecture"].contents()))
    for name, each in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if name == "general.file_type" else each.contents()
        inner = {"sub_type": each.types[-1]} if each.types[0] == values.ARRAY else {}
        writer.add_key_value(name, value, each.types[0], **inner)
    for tensor in reader.tensors:
        # Norms stay as they are, and what does not fit into blocks.
        if len(tensor.shape) < 2 or int(tensor.shape[0]) % Q8_0_BLOCK:
            kept = None if tensor.tensor_type in (kinds.F32, kinds.F16) else tensor.tensor_type
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=kept)
            continue
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, gguf.quants.quantize(plain, kinds.Q8_0), raw_dtype=kinds.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    with tempfile.TemporaryFile() as log:
        environment = clean_variables() | dict(variables or {})
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, env=environment)
        if done.returncode:
            raise LoadError(f"{' '.join(command[1:4])} ended with {done.returncode} ({last_line(log)})")
