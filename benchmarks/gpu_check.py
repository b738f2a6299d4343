"""What a GPU makes of bild, in one command of a few minutes: right, and how fast.

    python benchmarks/gpu_check.py [--device cuda|cpu] [--blocks NAME …] [--seconds 480] [--out FILE]

Needs PyTorch, transformers and this checkout; nothing is fetched, weights are made on the device. Each block is
independent, has a time of its own, and ends in one JSON line; what goes wrong is the line's "error". On a CPU the
blocks that need a GPU say that they were skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import transformers  # noqa: E402
from shapes import CONFIGS, random_network  # noqa: E402
from transformers import LlamaConfig, PreTrainedModel  # noqa: E402

from bild import BigLittleDecoder  # noqa: E402
from bild.decoding import ModelDrafter, Policy, Request, Sampling, Scorer, decode  # noqa: E402
from bild.decoding.choice import draw  # noqa: E402
from bild.models import CompiledModel, EagerModel  # noqa: E402
from bild.models.compiled import compiling  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (1, 2, 4, 8, 11, 16)
PREFIX = list(range(200, 220))
SOURCE = list(range(100, 116))
REPEATS = 30
SENTENCES = ROOT / "docs" / "demo.txt"
Block = Callable[[], dict[str, Any]]


class Skipped(Exception):
    """A block that needs what this machine does not have."""


class OutOfTime(BaseException):
    """A block has used its time; not an Exception, so that no fallback takes it for a fault of its own."""


def main() -> int:
    """Run the blocks that are asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=str(DEVICE), help="cuda, cuda:1 or cpu; a GPU where there is one")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), help="all by default")
    parser.add_argument("--seconds", type=float, default=480, help="for all blocks together; 480 by default")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    args = parser.parse_args()
    globals()["DEVICE"] = torch.device(args.device)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    end, failed = time.monotonic() + args.seconds, False
    for name in args.blocks:
        block, limit = BLOCKS[name]
        line = run(name, block, min(limit, end - time.monotonic()))
        failed = failed or "error" in line
        print(json.dumps(line), flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return int(failed)


def run(name: str, block: Block, limit: float) -> dict[str, Any]:
    """A block's line: what it found, or why it found nothing."""
    start = time.monotonic()
    try:
        with time_box(limit):
            found = block()
    except Skipped as reason:
        found = {"skipped": str(reason)}
    except OutOfTime:
        found = {"error": f"not done after {limit:.0f} s"}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
    finally:
        free()
    return {"block": name, "seconds": round(time.monotonic() - start, 1), **found}


@contextmanager
def time_box(limit: float) -> Iterator[None]:
    """Interrupt what takes longer than so many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    if limit < 1:
        raise OutOfTime
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(limit))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def free() -> None:
    """Let go of a block's networks."""
    import gc

    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def needs_gpu() -> None:
    """Raise where there is none."""
    if DEVICE.type != "cuda":
        raise Skipped("needs a GPU")


def wait() -> None:
    """Until the device has done all it was asked."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def ms(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median milliseconds of a call, the device's work included."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 4)


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    count = 1 << (30 if DEVICE.type == "cuda" else 26)
    source = torch.empty(count, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * count / (1e-3 * ms(lambda: target.copy_(source), 10))


# What is there.


def environment() -> dict[str, Any]:
    """Versions, the device, its memory and bandwidth."""
    found: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0],
        "device": str(DEVICE), "threads": torch.get_num_threads(), "compiler": compiling.has_compiler(),
        "nvcc": shutil.which("nvcc"), "bandwidth_gb_s": round(bandwidth() / 1e9),
    }  # fmt: skip
    if DEVICE.type == "cuda":
        free_bytes, total = torch.cuda.mem_get_info(DEVICE)
        found |= {"gpu": torch.cuda.get_device_name(DEVICE), "free_gb": round(free_bytes / 1e9), "gb": total // 10**9}
    return found


# The contract suite, there.


def contract() -> dict[str, Any]:
    """What every scorer owes the loop, uncompiled."""
    return suite("eager and not exit")


def contract_recorded() -> dict[str, Any]:
    """Likewise, recorded."""
    return suite("recorded")


def suite(which: str) -> dict[str, Any]:
    """The tests of the scorer contract on the device."""
    command = [sys.executable, "-m", "pytest", "tests/models/test_scorer_contract.py", "-x", "-k", which]
    command += ["-W", "default", "-p", "no:cacheprovider"]
    if DEVICE.type == "cuda":
        command += ["-n", "8"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150,
        env=os.environ | {"BILD_TEST_DEVICE": str(DEVICE), "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    lines = (result.stdout + result.stderr).strip().splitlines()
    if result.returncode:
        print("\n".join(lines[-60:]), file=sys.stderr)
        return {"error": next((line for line in lines if line.startswith("E  ")), lines[-1] if lines else "no output")}
    return {"passed": next(line for line in reversed(lines) if "passed" in line)}


# The same texts as on the CPU.


def texts() -> dict[str, Any]:
    """Greedy and sampled texts of tiny float32 networks, on the device and on the CPU."""
    from tests.networks import build, perturbed

    same = total = 0
    for name in ("t5", "llama"):
        networks = [build(name, dtype=torch.float32).cpu()]
        networks.append(perturbed(networks[0], 0.3))
        for preset in ("bild", "exact", "speculative_sampling", "typical", "small", "large"):
            for rows in (1, 4):
                for choice in (None, Sampling()):
                    both = [
                        written([network.to(device) for network in networks], preset, rows, choice)
                        for device in ("cpu", DEVICE)
                    ]
                    total += 1
                    same += both[0] == both[1]
    return {"same": same, "of": total}


def written(networks: list[PreTrainedModel], preset: str, rows: int, choice: Any) -> Any:
    """Rows and tokens of all commits."""
    models = [EagerModel(network) for network in networks]
    is_encoder = models[0].is_encoder_decoder
    sources = [list(range(2, 5 + row)) if is_encoder else [] for row in range(rows)]
    prompts = [[0] if is_encoder else [2, 3 + row] for row in range(rows)]
    requests = [
        Request(
            prompt=prompt, max_new_tokens=20, eos_token_ids=frozenset([1]), generator=torch.Generator().manual_seed(7)
        )
        for prompt in prompts
    ]
    large, small = (model.start(sources) for model in models)
    commits = decode(requests, Policy.preset(preset), large=large, drafter=ModelDrafter(small), choice=choice)
    return [(commit.row, commit.tokens) for commit in commits]


# Compiling, and the time of a step.


def step_llama() -> dict[str, Any]:
    """Of a Llama of 1B."""
    return steps("llama-1b")


def step_t5() -> dict[str, Any]:
    """Of T5-large."""
    return steps("t5-large")


def step_small() -> dict[str, Any]:
    """Of a Llama of 150M."""
    return steps("llama-150m")


def steps(shape: str) -> dict[str, Any]:
    """Milliseconds a step by tokens read: transformers' eager modules, compiled, compiled and recorded; the floor."""
    import floor

    needs_gpu()
    network = random_network(CONFIGS[shape], torch.bfloat16)
    sources = [SOURCE if network.config.is_encoder_decoder else []]
    parts = floor.step_bytes(network, sources[0], PREFIX)
    network = network.to(DEVICE)
    before, begin = torch.cuda.memory_allocated(), time.monotonic()
    model = CompiledModel(network)
    found: dict[str, Any] = {
        "shape": shape, "is_compiled": model.is_compiled, "start_s": round(time.monotonic() - begin, 1),
        "network_gb": round(before / 1e9, 2), "more_gb": round((torch.cuda.memory_allocated() - before) / 1e9, 2),
        "floor_ms": round(1e3 * sum(parts.values()) / bandwidth(), 3),
    }  # fmt: skip
    found["eager"] = times(EagerModel(network).start(sources), 5)
    if model.is_compiled:
        scorer = model.start(sources)
        found["recorded"] = times(scorer)
        model.graphs.is_recorded = False
        found["compiled"] = times(model.start(sources), 10)
        model.graphs.is_recorded = True
        found["rolled"] = rolled(model, sources)
        found["recordings"] = model.graphs.recordings
    return found


def times(scorer: Scorer, repeats: int = REPEATS) -> dict[int, float]:
    """Milliseconds of reading q tokens behind the prefix."""
    scorer.extend([PREFIX])

    def step(q: int) -> None:
        scorer.summarize([PREFIX[:q] if q <= len(PREFIX) else PREFIX * 2], q)
        scorer.truncate([len(PREFIX)])

    return {q: ms(lambda q=q: step(q), repeats) for q in LENGTHS}


def rolled(model: CompiledModel, sources: list[list[int]]) -> dict[int, float]:
    """Milliseconds a token of writing several at once, the way back to the host included."""
    scorer = model.start(sources)
    scorer.extend([PREFIX])

    def roll(steps: int) -> None:
        goes_on = iter([True] * (steps - 1) + [False])
        # One at a time is how a CPU writes, in native code.
        model.graphs.at_once = max(2, steps)
        scorer.roll([[7]], steps, lambda *_: next(goes_on), [None])
        scorer.truncate([len(PREFIX)])

    usual = model.graphs.at_once
    found = {steps: round(ms(lambda steps=steps: roll(steps)) / steps, 4) for steps in (1, 4, 8)}
    model.graphs.at_once = usual
    return found


# How often the host waits.


def waiting() -> dict[str, Any]:
    """Synchronisations of a drafted token and of a round, one row and eight ragged ones."""
    needs_gpu()
    from tests.networks import build, perturbed

    large = build("llama", dtype=torch.float32).to(DEVICE)
    models = [EagerModel(large), EagerModel(perturbed(large, 0.3).to(DEVICE))]
    return {f"{rows} rows": waits_of(models, rows) for rows in (1, 8)}


def waits_of(models: list[EagerModel], rows: int) -> dict[str, float]:
    """By round and drafted token."""
    large, small = (model.start([[]] * rows) for model in models)
    requests = [Request(prompt=[2] + [3] * row, max_new_tokens=40, eos_token_ids=frozenset()) for row in range(rows)]
    loop = decode(requests, Policy.preset("exact"), large=large, drafter=ModelDrafter(small))
    list(zip(range(2 * rows), loop, strict=False))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        commits = [commit for _, commit in zip(range(4 * rows), loop, strict=False)]
    events = {event.key: event.count for event in seen.key_averages()}
    waits = sum(count for key, count in events.items() if key in ("cudaStreamSynchronize", "cudaDeviceSynchronize"))
    longest = sum(max(len(c.draft) for c in commits[at : at + rows]) for at in range(0, len(commits), rows))
    rounds = max(1, len(commits) / rows)
    return {"a_round": round(waits / rounds, 2), "drafted_a_round": round(longest / rounds, 2)}


# The bundled pair.


def bundled() -> dict[str, Any]:
    """Milliseconds a text of the bundled pair by runtime and policy, and texts that are those of the CPU."""
    lines = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = (lines * 5)[:20]
    host = BigLittleDecoder.from_pretrained(device="cpu", dtype="float32", runtime="eager")
    wanted = {policy: [text.text for text in host.generate(lines[:6], policy=policy)] for policy in ("bild", "large")}
    found: dict[str, Any] = {}
    for runtime in ("eager", "static") if DEVICE.type == "cuda" else ("eager",):
        pair = BigLittleDecoder.from_pretrained(device=str(DEVICE), dtype="float32", runtime=runtime)
        texts = {policy: [text.text for text in pair.generate(lines[:6], policy=policy)] for policy in wanted}
        same = {policy: sum(a == b for a, b in zip(texts[policy], wanted[policy], strict=True)) for policy in wanted}
        found[runtime] = {"same_of_6": same}
        if DEVICE.type == "cuda":
            pair = BigLittleDecoder.from_pretrained(device=str(DEVICE), dtype="bfloat16", runtime=runtime)
        for policy in ("large", "exact", "bild", "small"):
            # What is compiled or recorded for a text's length is so for the first one.
            for line in dict.fromkeys(lines):
                pair.generate(line, policy=policy)
            start = time.perf_counter()
            for line in lines:
                pair.generate(line, policy=policy)
            found[runtime][policy] = round(1e3 * (time.perf_counter() - start) / len(lines), 2)
    return found


# A pair of a cost ratio of one to ten.


def ratio() -> dict[str, Any]:
    """A large model whose upper layers change little, and its first layer as the small one: tokens a second."""
    import floor

    needs_gpu()
    config = LlamaConfig(**CONFIGS["llama-1b"].to_dict() | {"num_hidden_layers": 20})
    large = random_network(config, torch.bfloat16)
    parts = floor.step_bytes(large, [], PREFIX)
    large = large.to(DEVICE)
    torch.manual_seed(0)
    with torch.no_grad():
        large.get_input_embeddings().weight.normal_(0, 0.05)
        for layer in large.model.layers[1:]:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.mul_(0.3)
    little = LlamaConfig(**config.to_dict() | {"num_hidden_layers": 1})
    small = random_network(little, torch.bfloat16).to(DEVICE)
    small.load_state_dict({name: weight for name, weight in large.state_dict().items() if name in small.state_dict()})
    begin = time.monotonic()
    models = [CompiledModel(network) for network in (large, small)]
    found: dict[str, Any] = {
        "compiled": [model.is_compiled for model in models], "compile_s": round(time.monotonic() - begin, 1),
        "floor_ms": round(1e3 * sum(parts.values()) / bandwidth(), 3),
    }  # fmt: skip
    found["large_ms"], found["small_ms"] = (times(model.start([[]])) for model in models)
    found["eager_ms"] = times(EagerModel(large).start([[]]), 5)
    if not all(found["compiled"]):
        return found
    found["small_rolled_ms"] = rolled(models[1], [[]])
    for name, policy in {
        "large": Policy.preset("large"),
        "exact": Policy.preset("exact"),
        "bild": Policy.preset("bild", fallback_threshold=0.0, rollback_threshold=6.0),
    }.items():
        found[name] = median_of_three(lambda policy=policy: speed(models, policy))
    for name in ("exact", "bild"):
        found[name]["over_large"] = round(found[name]["tokens_s"] / found["large"]["tokens_s"], 2)
    found["recordings"] = [model.graphs.recordings for model in models]
    return found


def median_of_three(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The median of three runs, after one that does not count."""
    runs = [call() for _ in range(4)][1:]
    return sorted(runs, key=lambda found: found["tokens_s"])[1]


def speed(models: Sequence[Any], policy: Policy, tokens: int = 200) -> dict[str, Any]:
    """Tokens a second of one text, and what became of its drafts."""
    wait()
    start = time.perf_counter()
    large, small = (model.start([[]]) for model in models)
    request = Request(prompt=PREFIX, max_new_tokens=tokens, eos_token_ids=frozenset())
    drafter = None if policy.alone == "large" else ModelDrafter(small)
    commits = [*decode([request], policy, large=large, drafter=drafter)]
    seconds = time.perf_counter() - start
    drafted, accepted = sum(len(c.draft) for c in commits), sum(c.accepted for c in commits)
    return {"tokens_s": round(tokens / seconds), "rounds": len(commits), "drafted": drafted, "accepted": accepted}


# Training.


def training() -> dict[str, Any]:
    """A training step of the bundled large shape, as it is and recorded: the same gradients, and milliseconds."""
    from bild.models import load_network
    from bild.training import Recipe
    from bild.training.batches import IGNORED
    from bild.training.losses import Objective
    from bild.training.recording import Recorder

    needs_gpu()
    folder = str(ROOT / "models" / "de-en" / "large")
    network = load_network(folder, dtype=torch.float32, device=DEVICE, trainable=True)
    objective = Objective(network, Recipe(epochs=1), torch.bfloat16).train()
    ids = torch.randint(2, 7000, (1000, 16), device=DEVICE)
    read, labels = torch.ones_like(ids), ids.masked_fill(ids % 5 == 0, IGNORED)
    read[::3, 10:] = 0
    inputs = {"input_ids": ids, "attention_mask": read, "decoder_input_ids": ids.flip(1), "labels": labels}
    recorder = Recorder(objective)

    def step() -> None:
        network.zero_grad()
        objective(**inputs).backward()

    step()
    weights = [weight for weight in network.parameters() if weight.grad is not None]
    wanted = [weight.grad.clone() for weight in weights]
    # The second shape's recording must not disturb the first's.
    recorder(inputs), recorder({name: value[:500] for name, value in inputs.items()}), recorder(inputs)
    apart = [float((weight.grad - own).norm() / own.norm()) for weight, own in zip(weights, wanted, strict=True)]
    return {
        "positions": 2 * ids.numel(), "furthest_gradient": round(max(apart), 4), "eager_ms": ms(step, 10),
        "recorded_ms": ms(lambda: recorder(inputs), 10), "gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }  # fmt: skip


# Draws.


def draws() -> dict[str, Any]:
    """Draws follow their weights, and take little memory with a vocabulary of 152,064."""
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], device=DEVICE).expand(20000, 1, 4)
    uniforms = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(weights, uniforms).flatten().cpu(), minlength=4).double()
    expected = weights[0, 0].cpu().double() * 20000
    found: dict[str, Any] = {"chi_square_3": round(float(((counts - expected) ** 2 / expected).sum()), 2)}
    wide = torch.rand(8, 11, 152064, device=DEVICE)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        draw(wide, torch.rand(8, 11, dtype=torch.float64))
        found["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    found["ms"] = ms(lambda: draw(wide, torch.rand(8, 11, dtype=torch.float64)), 5)
    return found


# Edges.


def edges() -> dict[str, Any]:
    """A device by number, a long prompt, float16, and the message where memory is short."""
    found: dict[str, Any] = {}
    device = "cuda:0" if DEVICE.type == "cuda" else "cpu"
    config = LlamaConfig(**CONFIGS["llama-150m"].to_dict() | {"num_hidden_layers": 2})
    network = random_network(config, torch.float16 if DEVICE.type == "cuda" else torch.float32).to(device)
    for kind in (EagerModel, CompiledModel) if DEVICE.type == "cuda" else (EagerModel,):
        model = kind(network)
        scorer = model.start([[]])
        scorer.extend([[token % 30000 for token in range(3000)]])
        scores = scorer.extend([[5, 6, 7]], 3)
        found[kind.__name__] = {"finite": bool(scores.isfinite().all()), "compiled": model.is_compiled}
    if DEVICE.type == "cuda":
        try:
            torch.empty(1 << 50, device=DEVICE)
        except RuntimeError as error:
            found["memory"] = str(error).splitlines()[0][:120]
    return found


BLOCKS: dict[str, tuple[Block, float]] = {
    "environment": (environment, 20),
    "contract": (contract, 120),
    "texts": (texts, 60),
    "step_small": (step_small, 90),
    "step_llama": (step_llama, 120),
    "step_t5": (step_t5, 150),
    "waiting": (waiting, 30),
    "bundled": (bundled, 120),
    "ratio": (ratio, 150),
    "training": (training, 60),
    "draws": (draws, 20),
    "edges": (edges, 60),
    "contract_recorded": (contract_recorded, 160),
}

if __name__ == "__main__":
    sys.exit(main())
