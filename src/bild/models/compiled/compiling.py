"""Compile a pass once, keep it on disk, load it in a blink.

``torch.export`` traces the module as it is into one full graph, AOTInductor turns that into a shared library
with the weights packed for this machine. Loading it needs no tracing, no guards and no compiler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers.integrations import sdpa_attention

from bild.cache import one_at_a_time
from bild.errors import one_line
from bild.models import kernels
from bild.models.compiled import few as few_layers
from bild.models.compiled import graph_files, layers, processes, runner
from bild.models.compiled.graph_files import file_of
from bild.models.compiled.tanh import replace_tanh
from bild.models.instructions import has_instructions
from bild.models.kernels.attention import THEIRS

logger = logging.getLogger("bild")

# Inductor's own GEMM template beats oneDNN two to three times at a few rows: no call overhead, weights packed for AMX
# or AVX512. At the many rows of a source oneDNN is the faster one. The template has no kernel of float64; what else it
# has none for is compiled a second time, without it.
# A loop of fewer numbers than a chunk is done before a second thread has woken up: 4 % of a step.
LIBRARY = {"freezing": True, "cpp.min_chunk_size": 4096}
TEMPLATES = {**LIBRARY, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}
# Where all products are ours, OpenMP's threads would have loops only, and spin between them on the cores where threads
# of our kernels multiply. SmolLM2 in int8, two threads: a token 7.3 for 9 ms, five 8.7 for 12, 512 318 for 461.
OURS = {**LIBRARY, "cpp.threads": 1}
SOURCES = (
    *(
        "compiled/cache.py",
        "compiled/graphs.py",
        "compiled/compiling.py",
        "compiled/few.py",
        "compiled/headers/regex",
        "compiled/layers.py",
        "compiled/tanh.py",
        "early_exit/graphs.py",
        "early_exit/split.py",
    ),
    *("int4.py", "int8.py", "passes.py", "rope.py", "seams.py", "short_list.py"),
    *(f"kernels/{name}.py" for name in ("activation", "attention", "building", "floats", "int4", "int8", "joining")),
    *(f"kernels/{name}.py" for name in ("operators", "summary")),
)
"""Files that decide what is compiled."""

HEADERS = Path(__file__).with_name("headers")
"""What stands in for headers of the standard library."""
SEARCHED = "CPLUS_INCLUDE_PATH"
"""Where compilers look for headers before they look into the standard library."""
DEVICES = 'std::regex re("(cpu|cuda|xpu|mps)(:([0-9]+))?");'
"""What torch's runtime has a regular expression for."""

UNFINISHED = "tmp"
"""How the folder of a graph begins that is being compiled."""
STALE_S = 24 * 3600.0
"""Age in seconds at which an unfinished graph belongs to a compilation that was killed."""

_digests: WeakKeyDictionary[nn.Module, tuple[Any, bytes]] = WeakKeyDictionary()

compilations = 0
"""How many graphs this process, and those it has started, have compiled; loading one from disk does not count."""


def count(more: int) -> None:
    """So many graphs were compiled."""
    global compilations
    compilations += more


def announce(name: str) -> None:
    """Log what is compiled; this happens once per pair and machine."""
    logger.warning("compiling %s (once; about half a minute, one or two for dozens of layers)", name)


def fingerprint(network: Any) -> str:
    """A name for these weights on this machine, with these versions and this many threads."""
    digest = hashlib.sha256(digest_of_weights(network))
    config = {key: value for key, value in network.config.to_dict().items() if key != "_name_or_path"}
    digest.update(json.dumps([config, _circumstances(network)], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def digest_of_weights(network: nn.Module) -> bytes:
    """SHA-256 of all weights; remembered until one changes: gigabytes take seconds."""
    tensors = network.state_dict()
    names = [f"{name}{tuple(tensor.shape)}{tensor.dtype}" for name, tensor in tensors.items()]
    versions = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors.values()]
    known, result = _digests.get(network, (None, b""))
    if known == [names, versions]:
        return result
    digest = hashlib.sha256("\n".join(names).encode())
    for tensor in tensors.values():
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    _digests[network] = ([names, versions], digest.digest())
    return digest.digest()


def _circumstances(network: Any) -> list[object]:
    """What a compiled graph depends on besides the weights."""
    files = [Path(__file__).parents[1] / name for name in SOURCES]
    sources = [file.read_text(encoding="utf-8") for file in files]
    hardware = torch.backends.cpu.get_cpu_capability()
    attention = getattr(network.config, "_attn_implementation", None)
    return [
        torch.__version__,
        transformers.__version__,
        str(hardware),
        has_instructions("amx_tile"),
        attention,
        torch.get_num_threads(),
        # A graph calls them, or does without.
        kernels.digest() if kernels.is_loaded() else None,
        sources,
    ]


def compiled(
    module: nn.Module,
    inputs: Sequence[Any],
    dynamic_shapes: Any,
    *,
    name: str,
    progress: Callable[[str], None],
    many_rows: bool = False,
) -> Callable[[list[Tensor]], list[Tensor]]:
    """A compiled module, from disk if it is there.

    Args:
        module: what to compile, in eval mode; its weights become part of the result.
        inputs: example arguments; every dimension that varies at least 2.
        dynamic_shapes: as ``torch.export.export`` takes them.
        name: of the file; says everything the result depends on.
        progress: told what is being compiled before it starts.
        many_rows: whether its products mostly have more rows than a few.

    Returns:
        A function of all tensors among the arguments, in order, to a list of tensors.

    Raises:
        Exception: whatever torch raises when it cannot compile or load.
    """
    file = file_of(name)
    if graph := _load_if_whole(file):
        return graph
    if not has_compiler():
        raise RuntimeError("there is no C++ compiler on this machine; install g++, or name one in CXX")
    progress(name)
    with one_at_a_time(file):
        if graph := _load_if_whole(file):  # another process has compiled it
            return graph
        start = time.perf_counter()
        _compile(module, inputs, dynamic_shapes, file, LIBRARY if many_rows else TEMPLATES)
        logger.info("compiled %s in %.0f s", name, time.perf_counter() - start)
        graph_files.make_room(file.parent, keep=file)
    return _load(file)


def has_compiler() -> bool:
    """Whether this machine can compile for its processor; better known before minutes of tracing."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


def _load_if_whole(file: Path) -> Callable[[list[Tensor]], list[Tensor]] | None:
    """None where there is none, or a damaged one."""
    if not file.exists():
        return None
    try:
        return _load(file)
    except Exception as error:  # whatever a damaged file makes of the loader
        logger.info("%s cannot be read and is compiled anew (%s)", file, one_line(error))
        return None


def _load(file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    # Its calls of our kernels are looked up when it is loaded.
    kernels.is_loaded()
    run: Callable[[list[Tensor]], list[Tensor]]
    run = runner.Graph(file) if runner.is_loaded() else torch._inductor.aoti_load_package(str(file)).loader.run
    graph_files.used(file)
    return run


def _compile(
    module: nn.Module, inputs: Sequence[Any], dynamic_shapes: Any, file: Path, options: dict[str, Any]
) -> None:
    count(1)
    _remove_unfinished(file.parent)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_short_headers())
        stack.enter_context(torch.no_grad())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=file.parent))
        # Renamed when complete: a killed compilation, or two at once, leave nothing half written.
        unfinished = Path(folder) / "graph.pt2"
        # Parts are called by our own hand alone.
        few = few_layers.cut_of_few(module, inputs, dynamic_shapes, exported) if runner.is_loaded() else None
        if few is not None and _is_packaged(few, unfinished):
            os.replace(unfinished, file)
            return
        program = exported(module, inputs, dynamic_shapes)
        parts = None
        has_all = kernels.has_all_products(program.graph)
        if processes.is_forked and not has_all:
            raise RuntimeError("there are products that OpenMP's threads would be timed with")
        if has_all:
            options = OURS
            parts = layers.cut(program, module) if runner.is_loaded() else None
        elif any(tensor.dtype == torch.float64 for tensor in module.parameters()):
            options = LIBRARY
        try:
            _package(program, parts, unfinished, options)
        except Exception as error:
            if parts is None and not isinstance(error, torch._inductor.exc.InductorError):
                raise
            _package(program, None, unfinished, LIBRARY if parts is None else options)
        os.replace(unfinished, file)


def _is_packaged(parts: layers.Cut, file: Path) -> bool:
    """Compile the parts of a graph, if they can be."""
    try:
        parts.write(file, _packing(OURS, file.parent))
    except Exception as error:  # what they are of is then traced whole
        logger.info("a graph is traced whole (%s)", one_line(error))
        return False
    return True


def exported(module: nn.Module, inputs: Sequence[Any], dynamic_shapes: Any) -> ExportedProgram:
    """A module as one graph, in which our kernels have taken their places.

    Args:
        module: as for :func:`compiled`.
        inputs: likewise.
        dynamic_shapes: likewise.

    Raises:
        RuntimeError: rows are named, and some attention is not our kernel's: it reads what is masked, which is never
            written there.
    """
    has_places = getattr(module, "has_places", False)
    with _unrepeated() if has_places else nullcontext():
        program = torch.export.export(
            module,
            tuple(inputs),
            dynamic_shapes=dynamic_shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_unread(program.graph)
    kernels.replace_linears(program.graph)
    kernels.join_products(program.graph)
    kernels.replace_activations(program.graph)
    _drop_unread(program.graph)
    replace_tanh(program.graph)
    kernels.replace_attention(program.graph)
    if has_places and any(node.target is THEIRS for node in program.graph.nodes):
        raise RuntimeError("not all of its attention is computed by our kernel")
    _drop_unread(program.graph)
    return program


@contextmanager
def _unrepeated() -> Iterator[None]:
    """Keys and values reach attention as they are stored, where transformers would repeat them for every head of
    queries: our kernel reads them so, and tracing what it drops takes a tenth of the time."""
    with patch.object(sdpa_attention, "use_gqa_in_sdpa", lambda *_, **__: True):
        yield


def _package(program: ExportedProgram, parts: layers.Cut | None, file: Path, options: dict[str, Any]) -> None:
    if parts is not None:
        parts.write(file, _packing(options, file.parent))
        return
    # Only where something is compiled: importing Inductor takes a second.
    from torch._inductor.package.package import package_aoti

    inputs, named = program.example_inputs
    files: Any = torch._inductor.aot_compile(
        program.module(check_guards=False), inputs, named, options=_packing(options, file.parent)
    )
    package_aoti(str(file), files)


def _packing(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options of the compiler, how it calls our kernels, and where it writes what is packed.

    Inductor itself would keep that, all weights among it, for good: in the temporary files of the system, which are
    memory on some.
    """
    return {
        **options,
        "aot_inductor.custom_ops_to_c_shims": kernels.graph_calls(),
        "aot_inductor.package": True,
        "aot_inductor.output_path": str(folder),
    }


def _drop_unread(graph: torch.fx.Graph) -> None:
    """Remove what no output needs: encoding a source asks the decoder for its keys and values only."""

    # By itself torch keeps a dropout that drops nothing and assertions on data types, and all they look at.
    def needed(node: torch.fx.Node) -> bool:
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        return node.op in ("placeholder", "output") or writes

    graph.eliminate_dead_code(is_impure_node=needed)


@contextmanager
def _short_headers() -> Iterator[None]:
    """Within, graphs are compiled without the standard library's regular expressions, where ours serve."""
    if not _has_one_expression():
        yield
        return
    ours, given = str(HEADERS), os.environ.get(SEARCHED)
    os.environ[SEARCHED] = f"{ours}{os.pathsep}{given}" if given else ours
    try:
        yield
    finally:
        # Another thread may have done the same meanwhile.
        folders = os.environ.get(SEARCHED, ours).split(os.pathsep)
        folders.remove(ours)
        if folders:
            os.environ[SEARCHED] = os.pathsep.join(folders)
        else:
            del os.environ[SEARCHED]


@cache
def _has_one_expression() -> bool:
    """Whether this torch's runtime has the regular expression that :data:`HEADERS` knows, and no other."""
    runtime = Path(torch.__file__).parent / "include/torch/csrc/inductor/aoti_runtime/model_base.h"
    try:
        text = runtime.read_text(encoding="utf-8")
    except OSError:
        return False
    return DEVICES in text and text.count("std::regex") == 2  # its declaration and its use


def _remove_unfinished(folder: Path) -> None:
    """What killed compilations left behind."""
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        if unfinished.stat().st_mtime < time.time() - STALE_S:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing and autotuning talk on stderr; what fails raises."""
    talkative = [logging.getLogger(name) for name in ("torch._inductor", "torch._export", "torch.fx")]
    levels = [each.level for each in talkative]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in talkative:
            each.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for each, level in zip(talkative, levels, strict=True):
                each.setLevel(level)
