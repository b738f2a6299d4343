"""A conversation that goes on: what was said so far, cut to what the models have room for."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from bild.decoding import Policy, Stats, Writer
from bild.engine import Memory
from bild.errors import InputError
from bild.generation.decoder import BigLittleDecoder
from bild.generation.prompts import OF_TEXTS
from bild.generation.result import Result
from bild.generation.seeds import fold

ROOM = 4
"""An answer is kept at least one part in so many of the context; older turns make room for it."""


class Conversation:
    """Turns of a user and answers to them; each answer is written with all turns before it in view.

    What the models have read of earlier turns is kept, so that only what is new is read.

    Args:
        decoder: a decoder-only pair whose checkpoint has a chat template.
        policy: as of :meth:`BigLittleDecoder.generate`; may be changed between two answers.
        system: system message; None: the template's own, if it has one.
        options: of :meth:`BigLittleDecoder.stream`. With a ``seed`` each answer draws numbers of its own.

    Raises:
        InputError: the pair cannot hold a conversation, or an option cannot be used.
    """

    def __init__(
        self,
        decoder: BigLittleDecoder,
        policy: str | Policy | None = "exact",
        *,
        system: str | None = None,
        **options: Any,
    ) -> None:
        if decoder.large.is_encoder_decoder:
            raise InputError("an encoder-decoder translates or summarises and holds no conversation; take a chat model")
        if decoder.tokenizer is None or not decoder.tokenizer.chat_template:
            raise InputError(
                "the checkpoint has no chat template, so it holds no conversation; take an instruct model, "
                "or bild generate for plain text"
            )
        self.decoder, self.policy, self.options = decoder, decoder.resolve_policy(policy), options
        self.system = system
        self.turns: list[dict[str, str]] = []
        """What was said and is still in view: the user's turns and the answers, by turns."""
        self.dropped = 0
        """Turns of the user that are no longer in view, with their answers."""
        self.result: Result | None = None
        """Of the last answer; None if it was stopped, and before the first."""
        self.stats: Stats | None = None
        """Of the last answer, as far as it came."""
        self.seconds = 0.0
        """That it took."""
        self._count, self._memory = 0, Memory()
        # What is wrong should be said before the first turn.
        decoder.generate([], self.policy, **self._options)

    def say(self, text: str) -> Generator[tuple[str, Writer]]:
        """Say something, and hand out the answer as it becomes final, each piece with who wrote it.

        Turns that the context has no room for are forgotten, the oldest first. An answer that is not heard to its end
        stays part of the conversation as far as it came; if nothing came of it, so does the turn not.

        Raises:
            InputError: a text that cannot be read or is too long by itself; the conversation then stays as it was.
        """
        kept, ids = self._fitting([*self.turns, {"role": "user", "content": text}])
        start, written = time.perf_counter(), []
        # The turns have been read as these options say.
        options = {name: value for name, value in self._options.items() if name not in OF_TEXTS}
        stream = self.decoder.stream(ids, self.policy, memory=self._memory, **options)
        self._count += 1
        try:
            for _ in stream:
                for part in stream.parts:
                    written.append(part[0])
                    yield part
        except GeneratorExit:
            raise
        except BaseException:
            # Models may have been interrupted in the middle of a pass.
            self._memory.forget()
            raise
        finally:
            stream.close()
            self.seconds = time.perf_counter() - start
            self.result, self.stats = stream.result, Stats.of(stream.rounds)
            if written or stream.result is not None:
                self.dropped += (len(self.turns) + 1 - len(kept)) // 2
                self.turns = [*kept, {"role": "assistant", "content": "".join(written)}]

    def clear(self) -> None:
        """Forget all turns."""
        self.turns, self.dropped = [], 0
        self.result = self.stats = None
        self._memory.forget()

    @property
    def _options(self) -> dict[str, Any]:
        seed = self.options.get("seed")
        own = {} if seed is None else {"seed": fold(seed, self._count)}
        given = {} if self.system is None else {"system": self.system}
        return {**self.options, **given, **own}

    def _fitting(self, turns: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """The last turns that leave room for an answer, and their token ids; always the last of them."""
        elsewhere = ("drafter", "lossless")
        options = {name: value for name, value in self._options.items() if name not in elsewhere}
        prompter, asked = self.decoder.asked(options)
        middle = self.decoder.middle
        models = [*self.decoder.models, *([] if middle is None else [middle])]
        limits = [model.max_positions for model in models if model.max_positions is not None]
        while True:
            ids = prompter.encode(turns)
            if not limits or len(turns) < 3:
                return turns, ids
            room = min(asked.new_tokens(0), max(1, min(limits) // ROOM))
            if len(ids) + room <= min(limits):
                return turns, ids
            turns = turns[2:]
