"""Peak memory of one method, in a fresh process that holds nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bild.errors import LoadError
from bild.evaluation.own import PolicyMethod
from bild.evaluation.roster import Setup, load_methods, parse_methods

NUM_EXAMPLES = 8
KIB = 1024


@dataclass(frozen=True)
class PeakMemory:
    """Largest resident memory while a method loads and decodes 8 examples.

    Args:
        total_bytes: of the process, with its imports and, for a peer, the processes it started.
        above_imports_bytes: the same less what ``import bild.generation`` (torch, transformers) alone takes; None for
            a peer with a process of its own, whose imports are not known.
        cuda_bytes: largest allocation on the GPU, None without one.
    """

    total_bytes: int
    above_imports_bytes: int | None
    cuda_bytes: int | None = None


def measure_memory(method: str, setup: Setup, sources: Sequence[str]) -> PeakMemory:
    """Load one method in a fresh process, decode, and ask for its peak.

    Args:
        method: as the user named it.
        setup: models and options.
        sources: texts to decode; the first 8 are.

    Raises:
        LoadError: the process failed; its last line says why.
    """
    asked = {"method": method, "setup": asdict(setup), "sources": list(sources[:NUM_EXAMPLES])}
    command = [sys.executable, "-c", "from bild.evaluation.memory import main; main()"]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, errors="replace", check=False
    )
    try:
        return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"exit code {done.returncode}"
        raise LoadError(f"peak memory of {method!r} could not be measured ({why})") from None


def peak_bytes(process: int | str = "self") -> int:
    """Largest resident memory of a running process so far, 0 where the system does not say.

    Not ``ru_maxrss``: Linux hands the peak of the parent on to a child, which would then be charged for it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return _own_peak_bytes() if process == "self" else 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * KIB if lines else 0


def _own_peak_bytes() -> int:
    """Without /proc: macOS counts bytes here, others KiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else KIB)


def _descendants(process: int | str = "self") -> list[int]:
    """Processes started by this one, and by those."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text(encoding="utf-8").split()):
            found += [child, *_descendants(child)]
    return found


def main() -> None:
    """Read what to load from stdin, write the peaks to stdout."""
    asked = json.load(sys.stdin)
    import torch

    import bild.generation  # noqa: F401  # what every own method imports

    imports = peak_bytes()
    roster = load_methods(parse_methods(asked["method"]), Setup(**asked["setup"]))
    if roster.failed:
        sys.exit(next(iter(roster.failed.values())))
    (method,) = roster.methods
    for source in asked["sources"]:
        method(source)
    own = peak_bytes()
    # What an own method starts are compilers, and they are gone when it decodes.
    started = [] if isinstance(method, PolicyMethod) else [peak_bytes(process) for process in _descendants()]
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    roster.close()
    peak = PeakMemory(own + sum(started), None if started else own - imports, cuda)
    print(json.dumps(asdict(peak)))
