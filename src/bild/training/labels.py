"""What the large model makes of the inputs: its greedy texts, the small model's targets (section 3.5.1)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bild.data import claim
from bild.data.files import whole_lines
from bild.data.json_text import from_json, to_json
from bild.generation import BigLittleDecoder
from bild.generation.seeds import digest_of, fold
from bild.training.checkpoint import writing

FILE, SETTINGS = "labels.jsonl", "labels.json"
ROWS = 96
"""Inputs decoded together."""


@dataclass(frozen=True, slots=True)
class Label:
    """One input and the large model's text for it."""

    source: str
    target: str
    token_ids: tuple[int, ...]
    """The text's tokens, the end token included."""
    finish_reason: str
    """``"eos"``, or ``"length"`` where the text was cut."""

    @classmethod
    def from_json(cls, line: bytes) -> Label | None:
        """The label of a line, None for one that was cut off."""
        try:
            values = from_json(line)
            return cls(values["source"], values["target"], tuple(values["token_ids"]), values["finish_reason"])
        except (ValueError, TypeError, KeyError):
            return None


class Labels:
    """Labels by input, on disk as soon as they are made.

    Args:
        folder: of the run; created where it is missing.
        settings: everything labels depend on, as plain JSON values.
        fresh: drop labels that were made with other settings.

    Raises:
        InputError: the folder holds labels made with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, fresh: bool = False) -> None:
        self.file = folder / FILE
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

            def clear() -> None:
                for name in (FILE, SETTINGS):
                    (folder / name).unlink(missing_ok=True)

            anew = fresh and not _same(folder / SETTINGS, settings)
            self._held = claim(folder / SETTINGS, settings, self.file, clear=clear if anew else None)
            self.by_source = {label.source: label for label in self._read()}

    def make(
        self,
        sources: Sequence[str],
        decoder: Callable[[], BigLittleDecoder],
        progress: Callable[[int, int, float, float], None],
        *,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        """Label what has no label yet, texts of like length together.

        Args:
            sources: distinct inputs.
            decoder: loads what decodes them; not called where nothing is left to do.
            progress: told inputs done, all inputs, tokens a second and seconds left, every ten seconds or so.
            seed: of draws, where the options ask for some; each input has its own, whatever it is labelled beside.
            options: of the decoder's ``generate``.
        """
        ordered = sorted(sources, key=lambda source: (len(source), source))
        batches = [ordered[at : at + ROWS] for at in range(0, len(ordered), ROWS)]
        left = [[source for source in batch if source not in self.by_source] for batch in batches]
        if not any(left):
            return
        loaded, pace = decoder(), Pace(sum(map(len, chain.from_iterable(left))))
        # The longest first: what does not fit into memory shows at once.
        for batch in filter(None, reversed(left)):
            drawn = {} if seed is None else {"seed": [fold(seed, digest_of(source)) for source in batch]}
            results = loaded.generate(batch, "large", batch_size=ROWS, **options, **drawn)
            made = [
                Label(source, result.text, tuple(result.token_ids), result.finish_reason)
                for source, result in zip(batch, results, strict=True)
            ]
            self._write(made)
            pace.done(sum(len(label.token_ids) for label in made), sum(map(len, batch)))
            if pace.due():
                progress(len(self.by_source), len(ordered), pace.tokens_per_second, pace.seconds_left)

    def _write(self, labels: Sequence[Label]) -> None:
        lines = "".join(to_json(asdict(label)) + "\n" for label in labels)
        with writing(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(lines)
        self.by_source |= {label.source: label for label in labels}

    def _read(self) -> Iterator[Label]:
        if self.file.exists():
            yield from filter(None, map(Label.from_json, whole_lines(self.file)))


class Pace:
    """How fast labelling goes.

    Args:
        characters: of all inputs still to label.
    """

    def __init__(self, characters: int) -> None:
        self.characters, self.tokens, self.read = characters, 0, 0
        self.start = self.told = time.perf_counter()

    def done(self, tokens: int, characters: int) -> None:
        """Count a batch."""
        self.tokens += tokens
        self.read += characters

    def due(self) -> bool:
        """Whether it is time for a line of progress: every ten seconds, and at the end."""
        now = time.perf_counter()
        if now - self.told < 10 and self.read < self.characters:
            return False
        self.told = now
        return True

    @property
    def tokens_per_second(self) -> float:
        """Tokens written / time."""
        return self.tokens / (time.perf_counter() - self.start)

    @property
    def seconds_left(self) -> float:
        """At the pace so far, by characters read."""
        return (time.perf_counter() - self.start) / self.read * (self.characters - self.read)


def _same(file: Path, settings: dict[str, Any]) -> bool:
    try:
        return bool(from_json(file.read_bytes()) == json.loads(json.dumps(settings)))
    except (OSError, ValueError):
        return False
