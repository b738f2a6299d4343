"""Texts through the decoder in order, those that cannot be decoded included."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, tee
from typing import TYPE_CHECKING, Any, Literal

from bild.cli.inputs import Source
from bild.errors import BildError, InputError, one_line

if TYPE_CHECKING:
    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder, Result

Side = Literal["result", "alone"]


@dataclass
class Decoded:
    """A text and what became of it."""

    source: Source
    ids: list[int] = field(default_factory=list)
    result: Result | None = None
    alone: Result | None = None
    """The large model's own, with --compare."""
    error: str | None = None

    @property
    def is_decoded(self) -> bool:
        """Whether it goes through the decoder."""
        return self.error is None and not self.source.is_blank


class LineDecoder:
    """Decodes texts as they come; what has been handed out is kept no longer.

    Args:
        decoder: of the pair.
        policy: how both models decode together.
        source: how a text becomes a prompt; options of ``decoder.prompter``.
        asked: options of ``decoder.generate_each``.
        batch_size: rows decoded together, 1…
        lanes: batches decoded side by side, 1…
        compare: whether the large model decodes every text, too.
        copies: texts drawn for each input, 1…
    """

    def __init__(
        self,
        decoder: BigLittleDecoder,
        policy: Policy,
        source: dict[str, Any],
        asked: dict[str, Any],
        batch_size: int,
        lanes: int,
        compare: bool,
        copies: int = 1,
    ) -> None:
        self.decoder, self.policy, self.source, self.asked = decoder, policy, source, asked
        self.batch_size, self.lanes, self.compare, self.copies = batch_size, lanes, compare, copies
        # Wrong options should fail before the first line is waited for.
        decoder.generate([], policy, num_return_sequences=copies, **source, **asked)
        self.prompter = decoder.prompter(**source)
        # Token ids say nothing of the language that their text is to be written in.
        self.asked = self.prompter.target_options(decoder.generation_config) | asked

    def run(self, sources: Iterable[Source], done: Callable[[Decoded], None]) -> None:
        """Decode everything.

        Args:
            sources: asked for one after the other, as the decoder has room; each stands for all its copies.
            done: told of every text in order, as soon as it and those before it are finished.

        Raises:
            BildError: a text that the decoder took and then failed on, by its place.
        """
        waiting: deque[Decoded] = deque()
        sides: tuple[Side, ...] = ("result", "alone") if self.compare else ("result",)

        outside: list[BildError] = []

        def settle() -> None:
            with _noting(outside):
                while waiting and not _lacks(waiting[0], sides):
                    done(waiting.popleft())

        def prompts() -> Iterator[list[int]]:
            iterator = iter(sources)
            while True:
                with _noting(outside):
                    source = next(iterator, None)
                if source is None:
                    return
                item = self._prepare(source)
                waiting.extend(replace(item) for _ in range(self.copies))
                if item.is_decoded:
                    yield item.ids
                else:
                    settle()

        try:
            for side, result in self._results(prompts(), sides):
                setattr(next(item for item in waiting if _lacks(item, (side,))), side, result)
                settle()
        except BildError as error:
            # What failed in reading or writing befell no text.
            raise outside[0] if outside else self._placed(error, waiting) from error

    def _prepare(self, source: Source) -> Decoded:
        item = Decoded(source, error=source.error)
        if item.is_decoded:
            try:
                item.ids = self.prompter.encode(source.text)
                self.decoder.check(item.ids, **self.asked)
            except InputError as error:
                item.error = one_line(error)
        return item

    def _results(self, prompts: Iterator[list[int]], sides: tuple[Side, ...]) -> Iterator[tuple[Side, Result]]:
        """What each side makes of the prompts, in order; two sides take turns, so that neither always goes first."""
        if len(sides) == 1:
            yield from (("result", result) for result in self._generate(prompts, self.policy))
            return
        self._warm_up()
        mine, theirs = tee(prompts)
        running = {"result": self._generate(mine, self.policy), "alone": self._generate(theirs, "large")}
        unfinished = True
        for order in cycle((sides, sides[::-1])):
            unfinished = False
            for side in order:
                for result in islice(running[side], self.batch_size * self.lanes):
                    unfinished = True
                    yield side, result
            if not unfinished:
                return

    def _generate(self, prompts: Iterator[list[int]], policy: str | Policy) -> Iterator[Result]:
        how: dict[str, Any] = {"batch_size": self.batch_size, "lanes": self.lanes, "num_return_sequences": self.copies}
        return self.decoder.generate_each(prompts, policy, **how, **self.asked)

    def _warm_up(self) -> None:
        """The first passes of a process are slow and would be charged to whoever goes first."""
        short = self.asked | {"max_new_tokens": 16}
        for policy in (self.policy, "large") * 2:
            self.decoder.generate("Guten Tag, das ist nur zum Aufwärmen.", policy, **self.source, **short)

    def _placed(self, error: BildError, waiting: Iterable[Decoded]) -> BildError:
        """The same error with the place of the text, or of the batch, that it befell."""
        places = [item.source.place for item in waiting if item.is_decoded][: self.batch_size * self.lanes]
        if not places:
            return error
        where = places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}"
        return type(error)(f"{where}: {one_line(error)}")


def _lacks(item: Decoded, sides: tuple[Side, ...]) -> bool:
    """Whether a result is still to come."""
    return item.is_decoded and any(getattr(item, side) is None for side in sides)


@contextmanager
def _noting(errors: list[BildError]) -> Iterator[None]:
    try:
        yield
    except BildError as error:
        errors.append(error)
        raise
