"""What a run has written so far: one JSON line for each method on each example. A killed run goes on from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bild.data.files import whole_lines, write_whole
from bild.data.json_text import from_json, is_count, is_number, to_json
from bild.errors import writing

Key = tuple[str, str]
"""Set and id of an example."""


@dataclass(frozen=True, slots=True)
class Record:
    """One method on one example."""

    set: str
    id: str
    method: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    total_s: float | None = None
    """Seconds from text in to text out."""
    ttft_s: float | None = None
    stats: dict[str, Any] | None = None
    """Counts of a policy."""
    counts: dict[str, int] | None = None
    """What else the method counts."""
    error: str | None = None
    """Why there is no text."""

    @property
    def key(self) -> Key:
        """Set and id of the example."""
        return self.set, self.id

    @classmethod
    def from_json(cls, line: bytes) -> Record | None:
        """The record of a line, None for one that was cut off or damaged."""
        try:
            values = from_json(line)
            record = cls(**{**values, "token_ids": tuple(values["token_ids"])})
        except (ValueError, TypeError, KeyError):
            return None
        return record if record._is_sound() else None

    def _is_sound(self) -> bool:
        """Whether all of it can be computed with."""
        texts = (self.set, self.id, self.method, self.text, "" if self.error is None else self.error)
        times = [time for time in (self.total_s, self.ttft_s) if time is not None]
        counts = {} if self.counts is None else self.counts
        return (
            all(isinstance(text, str) for text in texts)
            and all(is_count(token) for token in self.token_ids)
            and all(is_number(time) for time in times)
            and (self.error is not None or self.total_s is not None)
            and isinstance(counts, dict)
            and all(is_count(count) for count in counts.values())
            and _are_stats(self.stats)
        )


def _are_stats(values: dict[str, Any] | None) -> bool:
    if values is None:
        return True
    from bild.decoding import Stats

    try:
        Stats(**values).to_dict()
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return False
    return True


class Journal:
    """Records by example and method; on disk where a file is given.

    Only examples with a record of every method count: a half-done one is decoded again as a whole,
    so that its methods are still timed side by side.

    Args:
        methods: names that make an example complete.
        file: JSON lines, appended to; None: in memory only. A last line without its end is what a kill left, whole
            or not: it is cut off, so that nothing is glued to it.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, methods: Collection[str], file: Path | None = None) -> None:
        self.methods = tuple(methods)
        self.records: dict[Key, dict[str, Record]] = {}
        self._file = None
        if file is not None:
            self._resume(file)
            with writing(file):
                self._file = file.open("a", encoding="utf-8")

    def done(self, key: Key) -> bool:
        """Whether every method has this example."""
        return len(self.records.get(key, {})) == len(self.methods)

    def write(self, record: Record) -> None:
        """Add a record; on disk when this returns, as far as this program can tell."""
        self.records.setdefault(record.key, {})[record.method] = record
        if self._file is not None:
            with writing(self._file.name):
                self._file.write(to_json(asdict(record)) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file; the records stay in memory."""
        if self._file is not None:
            with writing(self._file.name):
                self._file.close()

    def _resume(self, file: Path) -> None:
        lines = whole_lines(file) if file.exists() else []
        read = [record for record in map(Record.from_json, lines) if record is not None]
        twice: set[Key] = set()
        for record in read:
            if record.method in self.methods:
                there = self.records.setdefault(record.key, {}).setdefault(record.method, record)
                if there != record:
                    # No run writes two; which is right is not known.
                    twice.add(record.key)
        self.records = {key: each for key, each in self.records.items() if self.done(key) and key not in twice}
        kept = [record for methods in self.records.values() for record in methods.values()]
        if len(kept) < len(lines):
            _rewrite(file, kept)


def _rewrite(file: Path, records: Iterable[Record]) -> None:
    with writing(file):
        write_whole(file, "".join(to_json(asdict(record)) + "\n" for record in records))
