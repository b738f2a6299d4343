"""What a pair does on texts, recorded once: all that a simulation needs of the models, so that it invents nothing.

Greedy decoding by the exact rule writes the large model's text, whatever is drafted. Whether a drafted token stays
depends on the text before it alone. So one bit a token, whether the small model would have written it, says what any
window would have come to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bild.data.files import write_whole
from bild.data.json_text import from_json, to_json
from bild.decoding import Policy, Row, Rules
from bild.engine import Job, Models, begin, small_of
from bild.errors import InputError, reading, writing

PIECE = 32
"""Tokens the small model reads in one pass."""


@dataclass(frozen=True)
class Text:
    """A text of the large model.

    Args:
        source: tokens of its source, or of its prompt.
        agreed: of each token, whether the small model would have written it there.
    """

    source: int
    agreed: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.agreed)

    def round(self, at: int, window: int) -> tuple[int, int, int]:
        """What a round comes to.

        Args:
            at: tokens that are final.
            window: longest draft, 0…

        Returns:
            Tokens drafted, tokens that stay, and tokens final afterwards. A draft that leaves the text goes on to its
            full length: how it would have ended is not known.
        """
        kept = 0
        while kept < window and at + kept < len(self) and self.agreed[at + kept]:
            kept += 1
        ended = at + kept == len(self)
        drafted = kept if ended else window
        return drafted, kept, at + kept + (not ended)


@dataclass(frozen=True)
class Recording:
    """Texts of a pair.

    Args:
        texts: at least one, none of them empty.
        told: what was recorded.

    Raises:
        InputError: no text, or an empty one.
    """

    texts: Sequence[Text]
    told: str = ""

    def __post_init__(self) -> None:
        if not self.texts or not all(len(text) for text in self.texts):
            raise InputError("a recording needs at least one text, none of them empty")

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))

    @property
    def alpha(self) -> float:
        """Share of tokens that the small model would have written, 0…1."""
        return sum(sum(text.agreed) for text in self.texts) / self.tokens

    def save(self, place: Path) -> None:
        """Write it as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        texts = [{"source": text.source, "agreed": "".join("01"[bit] for bit in text.agreed)} for text in self.texts]
        with writing(place):
            write_whole(place, to_json({"told": self.told, "texts": texts}, indent=1) + "\n")

    @classmethod
    def load(cls, place: Path) -> Recording:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file cannot be read, or is no recording.
        """
        with reading(place):
            raw = place.read_bytes()
        try:
            values = from_json(raw)
            return cls([_text(each) for each in values["texts"]], str(values["told"]))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{place} is no recording ({error}); make one with bild simulate --save") from None


def record(models: Models, jobs: Iterable[Job], told: str = "") -> Recording:
    """Let the large model write texts, and the small one read them.

    Args:
        models: of a pair; both are here.
        jobs: one a text; none of them draws.
        told: what is recorded, for the reader.

    Raises:
        InputError: there is no small model.
    """
    with torch.inference_mode():
        return Recording([_recorded(models, job) for job in jobs], told)


def _recorded(models: Models, job: Job) -> Text:
    batch = begin([job], 0, Rules(Policy.large()), models)
    text = [token for commit in _all(batch) for token in commit.tokens]
    prompt = list(job.request.prompt)
    row = Row(0, job.request)
    scorer = small_of(models).start([job.source])
    for place in range(0, len(prompt) - 1, PIECE):
        scorer.extend([prompt[:-1][place : place + PIECE]])
    agreed: list[bool] = []
    unread = [prompt[-1], *text[:-1]]
    for place in range(0, len(unread), PIECE):
        piece = unread[place : place + PIECE]
        logits = scorer.extend([piece], len(piece))[0].float()
        for at, scores in enumerate(logits):
            own = scores
            if row.request.process is not None:
                own = row.request.process([*prompt, *text[: place + at]], scores)
            agreed.append(int(own.argmax()) == text[place + at])
    return Text(len(job.source) if job.source else len(prompt), tuple(agreed))


def _all(batch: Any) -> Iterable[Any]:
    while batch.rows:
        yield from batch.round()


def _text(value: Any) -> Text:
    agreed = value["agreed"]
    if not agreed or set(agreed) - {"0", "1"} or type(value["source"]) is not int or value["source"] < 0:
        raise ValueError("a text is not 0s and 1s")
    return Text(value["source"], tuple(bit == "1" for bit in agreed))
