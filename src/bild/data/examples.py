"""Examples from local files or the Hugging Face hub: a source text and its references."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bild.data.files import FileRow, read_rows
from bild.data.lines import problem
from bild.errors import InputError, check_count, one_line, reading

FILE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".json", ".gz")


@dataclass(frozen=True, slots=True)
class Example:
    """One text to decode.

    Args:
        id: unique in its set; the line number of a file.
        source: text to decode.
        references: texts a person would accept; may be empty, as for chat.
    """

    id: str
    source: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """A set of examples and what was left out of it."""

    name: str
    examples: list[Example]
    skipped: list[str] = field(default_factory=list)
    """Lines that could not be used: where, and why."""

    @property
    def digest(self) -> str:
        """SHA-256 of the examples, as 16 hexadecimal digits."""
        text = json.dumps([(e.id, e.source, e.references) for e in self.examples], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_examples(
    spec: str,
    *,
    target_data: str | None = None,
    source_column: str = "source",
    target_column: str = "target",
    split: str = "test",
    limit: int | None = None,
) -> Data:
    """Read one set.

    Args:
        spec: ``.jsonl``, ``.csv`` or ``.tsv`` file with named columns, a text file with one source a line
            (all also as ``.gz``), or a Hugging Face dataset as ``NAME`` or ``NAME:CONFIG``.
        target_data: file with the reference of each line of a text file.
        source_column: column of the source; dots reach into nested columns (``translation.de``).
        target_column: column of the reference, or of a list of them; may be missing everywhere.
        split: of a Hugging Face dataset.
        limit: usable examples taken from the start, 1…; None: all.

    Raises:
        InputError: nothing there, or no usable example in it. Single bad lines are in ``skipped``.
    """
    if limit is not None:
        check_count("limit", limit)
    if _is_file(spec):
        target = None if target_data is None else Path(target_data)
        rows = read_rows(Path(spec), target, (source_column, target_column))
    else:
        rows = _hub_rows(spec, split, target_data)
    skipped: list[str] = []
    most = None if limit is None else min(limit, sys.maxsize)
    examples = list(islice(_usable(rows, source_column, target_column, skipped), most))
    if not examples:
        why = f"; {skipped[0]}" if skipped else ", it is empty"
        raise InputError(f"{spec} holds no usable example{why}; allowed are rows with a text in {source_column!r}")
    return Data(Path(spec).name, examples, skipped)


def read_sets(specs: Sequence[str], target_data: Sequence[str] | None = None, **options: Any) -> dict[str, Data]:
    """Read several sets by name.

    Args:
        specs: as :func:`read_examples` takes them.
        target_data: one for each of the specs, or none at all.
        options: of :func:`read_examples`.

    Raises:
        InputError: a set that cannot be read or is given twice, or not as many ``target_data`` as sets.
    """
    targets: Sequence[str | None] = target_data if target_data else [None] * len(specs)
    if len(targets) != len(specs):
        raise InputError(f"--data is given {len(specs)} times and --target-data {len(targets)} times; give as many")
    return {
        name: read_examples(spec, target_data=target, **options)
        for name, spec, target in zip(distinct_names(specs), specs, targets, strict=True)
    }


def distinct_names(paths: Sequence[str]) -> list[str]:
    """A short name for each data file: its stem, with its folder where two would be the same.

    Raises:
        InputError: the same file twice.
    """
    places = [str(Path(path).resolve()) if Path(path).exists() else path for path in paths]
    if len(set(places)) < len(places):
        twice = next(path for path, place in zip(paths, places, strict=True) if places.count(place) > 1)
        raise InputError(f"{twice} is given twice; give each set once")
    stems = [_stem(path) for path in paths]
    named = [stem if stems.count(stem) == 1 else f"{Path(path).parent.name}/{stem}"
             for path, stem in zip(paths, stems, strict=True)]  # fmt: skip
    return named if len(set(named)) == len(named) else list(paths)


def _stem(path: str) -> str:
    name = Path(path).name
    for suffix in (".gz", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _is_file(spec: str) -> bool:
    with reading(spec):
        there = Path(spec).exists()
    return there or Path(spec).suffix.lower() in FILE_SUFFIXES or spec.startswith((".", "/", "~"))


def _hub_rows(spec: str, split: str, target_data: str | None) -> Iterator[FileRow]:
    if target_data is not None:
        raise InputError(f"--target-data goes with a text file; {spec!r} is no file here")
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{spec!r} is no file here; for a Hugging Face dataset of that name, pip install datasets"
        ) from None
    name, _, config = spec.partition(":")
    try:
        rows = datasets.load_dataset(name, config if config else None, split=split)
    except Exception as error:  # datasets and the hub each raise their own
        raise InputError(
            f"{spec!r} is no file here, and no Hugging Face dataset of that name can be loaded ({one_line(error)})"
        ) from None
    return (FileRow(f"row {number}", str(number), value) for number, value in enumerate(rows, 1))


def _reach(value: object, column: str) -> object:
    """The value of a column; dots reach into nested ones, unless a column has that very name."""
    if isinstance(value, dict) and column in value:
        return value[column]
    head, dot, rest = column.partition(".")
    return _reach(value[head], rest) if dot and isinstance(value, dict) and head in value else None


def _usable(rows: Iterable[FileRow], source: str, target: str, skipped: list[str]) -> Iterator[Example]:
    for row in rows:
        example, error = (None, row.error) if row.value is None or row.error else _example(row, source, target)
        if example is None:
            skipped.append(f"{row.place}: {error}")
        else:
            yield example


def _example(row: FileRow, source: str, target: str) -> tuple[Example | None, str | None]:
    """The example of a row, or why there is none."""
    assert row.value is not None
    text, references = _reach(row.value, source), _references(_reach(row.value, target))
    if text is None:
        named = source in row.value or "." in source
        return None, "no source text" if named else f"no column {source!r}; there are {', '.join(map(str, row.value))}"
    if not isinstance(text, str):
        return None, f"the source is a {type(text).__name__}, not a text"
    if not text.strip():
        return None, "the source is empty"
    if references is None:
        kind = type(_reach(row.value, target)).__name__
        return None, f"the target is a {kind}, not a text or a list of texts"
    for side, one in (("source", text), *(("target", reference) for reference in references)):
        wrong = problem(one)
        if wrong is not None:
            return None, f"the {side} holds {wrong}"
    return Example(row.id, text, references), None


def _references(target: object) -> tuple[str, ...] | None:
    """The references, none where there is no target; None where it is nothing to compare with."""
    if target is None:
        return ()
    texts = [target] if isinstance(target, str) else target
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(text for text in texts if text.strip())
