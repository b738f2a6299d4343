"""The folder of a run: what it was asked for, what it has so far, what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bild.data import claim
from bild.data.files import write_whole
from bild.data.json_text import from_json, to_json
from bild.errors import writing
from bild.evaluation.memory import PeakMemory

CONFIGURATION, OUTPUTS, MEMORY = "run.json", "outputs.jsonl", "memory.json"
SUMMARY, REPORT = "summary.json", "report.html"


class Folder:
    """Files of one run.

    Args:
        path: created where it is missing.
        configuration: everything that texts and times depend on, as plain JSON values.
        fresh: delete the files of an earlier run first.
        files: names of those, beside the configuration.

    Raises:
        InputError: the folder holds a run with another configuration, or one that another process is at, or cannot be
            written.
    """

    def __init__(
        self,
        path: Path,
        configuration: dict[str, Any],
        *,
        fresh: bool = False,
        files: Sequence[str] = (OUTPUTS, MEMORY, SUMMARY, REPORT),
    ) -> None:
        self.path = path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)

            def clear() -> None:
                for name in (CONFIGURATION, *files):
                    (path / name).unlink(missing_ok=True)

            self._held = claim(path / CONFIGURATION, configuration, self.outputs, clear=clear if fresh else None)

    @property
    def outputs(self) -> Path:
        """JSON lines, one for each method on each example."""
        return self.path / OUTPUTS

    def memory(self) -> dict[str, PeakMemory]:
        """Peak memory measured so far, by method; a damaged file is measured anew."""
        try:
            values = from_json((self.path / MEMORY).read_bytes())
            return {name: PeakMemory(**peak) for name, peak in values.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def save_memory(self, peaks: dict[str, PeakMemory]) -> None:
        self.save(MEMORY, to_json({name: asdict(peak) for name, peak in peaks.items()}, indent=2) + "\n")

    def save(self, name: str, text: str) -> Path:
        """Write one file of the run.

        Raises:
            InputError: it cannot be written.
        """
        file = self.path / name
        with writing(file):
            write_whole(file, text)
        return file
