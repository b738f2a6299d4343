"""The questions: a file of JSON lines that the user has; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bild.data.examples import Example
from bild.data.files import FileRow, read_rows
from bild.data.lines import problem
from bild.errors import InputError, check_count

DIALOGUE = "dialogue"
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Categories of MT-bench, which are one group here: two turns each."""
GROUPS = (DIALOGUE, "translation", "summarization", "qa", "math_reasoning", "rag")
"""Groups of Spec-Bench, in the order of its tables."""
SHOWN = 3
"""Lines that could not be used, of which it is told why."""
INSTRUCTIONS = {"translation": "Translate German to English: ", "summarization": "Summarize: "}
"""What the questions of a group begin with, for a chat model; a translator or a summariser is not told its task."""
BETWEEN = "\n\n"
ALL = "all"
"""All groups together."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        id: unique in its file.
        group: of :data:`GROUPS`, or the file's own name for it.
        turns: what the user says, one or more; each after the model's answer to the one before.
    """

    id: str
    group: str
    turns: tuple[str, ...]

    @property
    def example(self) -> Example:
        """As an example of an evaluation: its source are all turns."""
        return Example(self.id, BETWEEN.join(self.turns))

    @property
    def plain(self) -> Question:
        """Without the instruction that is there for a chat model."""
        start = INSTRUCTIONS.get(self.group, "")
        return Question(self.id, self.group, tuple(turn.removeprefix(start) for turn in self.turns))


@dataclass(frozen=True)
class Questions:
    """The questions of a file, and what was left out of it."""

    questions: list[Question]
    skipped: list[str] = field(default_factory=list)
    """Lines that could not be used: where, and why."""

    @property
    def notes(self) -> list[str]:
        """Which lines could not be used, and how many; none where all could."""
        if not self.skipped:
            return []
        more = [f"{len(self.skipped)} lines in all"] if len(self.skipped) > SHOWN else []
        return [f"skipped {'; '.join([*self.skipped[:SHOWN], *more])}"]


def read_questions(path: Path, *, groups: Sequence[str] = (), limit: int | None = None) -> Questions:
    """Read a file in the form of Spec-Bench's ``question.jsonl``: ``question_id``, ``category`` and ``turns`` a line.

    Args:
        path: JSON lines.
        groups: names of those that are taken, as in :data:`GROUPS`; none: all.
        limit: first questions of each group, 1…; None: all.

    Raises:
        InputError: no usable question there, one that is there twice, or a group that is not.
    """
    if limit is not None:
        check_count("limit", limit)
    found, skipped = [], []
    for row in read_rows(path):
        question = _question(row)
        if isinstance(question, Question):
            found.append(question)
        else:
            skipped.append(f"{row.place}: {question}")
    if not found:
        why = skipped[0] if skipped else "it is empty"
        raise InputError(f"{path} holds no question; {why}; a line has question_id, category and turns")
    _check_unique(path, found)
    return Questions(_chosen(path, found, groups, limit), skipped)


def _question(row: FileRow) -> Question | str:
    """The question of a line, or why there is none."""
    if row.value is None or row.error is not None:
        return str(row.error)
    id, category, turns = (row.value.get(name) for name in ("question_id", "category", "turns"))
    if not isinstance(id, str | int) or isinstance(id, bool):
        return "no question_id that is a number or a text"
    if not isinstance(category, str) or not category.strip():
        return "no category that is a text"
    if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
        return "no turns that are a list of texts"
    wrong = next((wrong for turn in turns if (wrong := problem(turn)) is not None), None)
    if category.strip() == ALL:
        return f"the category {ALL}, which means every group here"
    return f"a turn holds {wrong}" if wrong else Question(str(id), _group(category), tuple(turns))


def _is_text(turn: Any) -> bool:
    return isinstance(turn, str) and bool(turn.strip())


def _group(category: str) -> str:
    # In one line, as it heads a column.
    return DIALOGUE if category in MT_BENCH else " ".join(category.split())


def _check_unique(path: Path, questions: Sequence[Question]) -> None:
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise InputError(f"{path} has two questions of the id {twice}; give each an id of its own")


def _chosen(path: Path, questions: Sequence[Question], groups: Sequence[str], limit: int | None) -> list[Question]:
    known = list(dict.fromkeys(question.group for question in questions))
    for name in groups:
        if name not in known:
            raise InputError(f"group is {name!r}; {path} has {', '.join(known)}")
    order = [name for name in (*GROUPS, *known) if name in known and (not groups or name in groups)]
    of_group = {name: [each for each in questions if each.group == name] for name in dict.fromkeys(order)}
    return [question for members in of_group.values() for question in members[:limit]]
