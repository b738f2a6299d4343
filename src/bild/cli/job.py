"""Lines through the decoder, batch by batch, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bild.cli.inputs import Line
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder, Result


@dataclass
class Decoded:
    """A line and what became of it."""

    line: Line
    index: int
    """Its place among all lines, from 0."""
    ids: list[int] = field(default_factory=list)
    result: Result | None = None
    alone: Result | None = None
    """The large model's own, with --compare."""
    error: str | None = None


@dataclass
class Job:
    """Decodes lines batch by batch, in order, bad ones included."""

    decoder: BigLittleDecoder
    policy: Policy
    source: dict[str, Any]
    asked: dict[str, Any]
    batch_size: int
    compare: bool
    _turn: bool = False

    def run(self, lines: Iterator[Line]) -> Iterator[Decoded]:
        """Every line in order."""
        # Wrong options should fail before the first line is waited for.
        self.decoder.generate([], self.policy, **self.source, **self.asked)
        prompter = self.decoder.prompter(**self.source)
        # Token ids say nothing of the language that their text is to be written in.
        self.asked = prompter.target_options(self.decoder.generation_config) | self.asked
        if self.compare:
            self._warm_up()
        batch: list[Decoded] = []
        for index, line in enumerate(lines):
            item = Decoded(line, index, error=line.error)
            try:
                if item.error is None:
                    item.ids = prompter.encode(line.text)
                    self.decoder.check(item.ids, **self.asked)
            except InputError as error:
                item.error = str(error)
            batch.append(item)
            if sum(item.error is None for item in batch) == self.batch_size:
                yield from self._decode(batch)
                batch = []
        yield from self._decode(batch)

    def _decode(self, batch: list[Decoded]) -> list[Decoded]:
        good = [item for item in batch if item.error is None]
        # In turn, so that neither side always goes first.
        self._turn = not self._turn
        for side in ("result", "alone") if self._turn else ("alone", "result"):
            if side == "alone" and not self.compare:
                continue
            policy = self.policy if side == "result" else "large"
            for item, result in zip(good, self._generate(good, policy), strict=True):
                setattr(item, side, result)
        return batch

    def _generate(self, items: list[Decoded], policy: str | Policy) -> list[Result]:
        from bild.generation.seeds import fold

        inputs, asked, seed = [item.ids for item in items], self.asked, self.asked.get("seed")
        if seed is not None:
            asked = asked | {"seed": [fold(seed, item.index) for item in items]}
        return self.decoder.generate(inputs, policy, batch_size=self.batch_size, **asked)

    def _warm_up(self) -> None:
        """The first passes of a process are slow and would be charged to whoever goes first."""
        short = self.asked | {"max_new_tokens": 16}
        for policy in (self.policy, "large") * 2:
            self.decoder.generate("Guten Tag, das ist nur zum Aufwärmen.", policy, **self.source, **short)
