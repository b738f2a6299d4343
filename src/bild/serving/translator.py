"""A pair as a mapper of batches, for Ray Data and whoever else hands out columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bild.errors import InputError, one_line
from bild.generation import BigLittleDecoder


class Translator:
    """Decodes a column of each batch; loads its pair once.

    A text of nothing but spaces stays what it is. One that cannot be decoded gets an empty text, and the reason in the
    column of errors, so that a single line does not end a run of a million.

    Args:
        pair: folder or ``bild.json``; None, and no ``large``: the bundled pair.
        column: that is read.
        into: column that is written.
        errors: column of reasons, empty where there is none.
        policy: name of a preset, with options.
        rows: texts decoded together, 1….
        options: those of :meth:`BigLittleDecoder.generate_each`.
        models: further arguments of :meth:`BigLittleDecoder.from_pretrained`.
    """

    def __init__(
        self,
        pair: str | None = None,
        *,
        column: str = "text",
        into: str = "translation",
        errors: str = "error",
        policy: str | None = None,
        rows: int = 4,
        options: Mapping[str, Any] | None = None,
        **models: Any,
    ) -> None:
        self.column, self.into, self.errors = column, into, errors
        self.decoder = BigLittleDecoder.from_pretrained(pair, **models)
        self._policy, self._rows, self._options = policy, rows, {} if options is None else dict(options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with two more columns.

        Raises:
            InputError: the column is not there, or the policy or an option cannot be used.
        """
        if self.column not in batch:
            raise InputError(f"there is no column {self.column!r}; there are {', '.join(batch)}")
        texts = [str(text) for text in batch[self.column]]
        said = [at for at, text in enumerate(texts) if text.strip()]
        found, errors = list(texts), [""] * len(texts)
        for at, (text, error) in zip(said, self._decode([texts[at] for at in said]), strict=True):
            found[at], errors[at] = text, error
        columns = {self.into: found, self.errors: errors}
        return {**batch, **{name: np.array(values, dtype=object) for name, values in columns.items()}}

    def _decode(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Each text and what went wrong with it."""
        if not texts:
            return []
        options = {"batch_size": min(self._rows, len(texts)), **self._options}
        try:
            return [(each.text, "") for each in self.decoder.generate_each(list(texts), self._policy, **options)]
        except InputError as error:
            # An option that is wrong is wrong for every text.
            self.decoder.resolve_policy(self._policy, lossless=bool(options.get("lossless", False)))
            self.decoder.asked({name: value for name, value in self._options.items() if name not in OF_A_CALL})
            if len(texts) == 1:
                return [("", one_line(error))]
        middle = len(texts) // 2
        return self._decode(texts[:middle]) + self._decode(texts[middle:])


OF_A_CALL = ("lossless", "drafter", "reward", "batch_size", "attention_mask")
"""Options of a call that say nothing of prompts or tokens."""
