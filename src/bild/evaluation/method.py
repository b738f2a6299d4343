"""What can be evaluated: anything that turns a source text into an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bild.errors import InputError

if TYPE_CHECKING:
    from bild.decoding import Stats

LAYERS_RUN, TOKENS_READ = "num_layers_run", "num_tokens_read"
"""What a method counts that leaves decoder layers out."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a method says of one text."""

    text: str
    token_ids: list[int]
    """New tokens, the end token included."""
    ttft_s: float | None = None
    """Seconds to the first token; None where the method does not say."""
    total_s: float | None = None
    """Seconds as measured by the method itself (a subprocess); None: the runner's clock counts."""
    stats: Stats | None = None
    """Counts of a policy; None for peers."""
    counts: dict[str, int] | None = None
    """What else the method counts, by name."""


@runtime_checkable
class Method(Protocol):
    """A way of decoding, loaded and ready.

    A method may also have ``details``, a dict of plain JSON values (versions, settings) that goes into
    the summary as it is.
    """

    name: str
    """As the user wrote it; unique in a run."""
    weight_bytes: int | None
    """Bytes of weights held, None where unknown."""

    def __call__(self, source: str) -> Output:
        """Decode one source text.

        Raises:
            BildError: a text this method cannot decode; the run records it and goes on.
        """
        ...

    def close(self) -> None:
        """Free what the method holds; called once, at the end of the run."""
        ...


@dataclass(frozen=True)
class MethodSpec:
    """A method as the user names it: ``NAME[:key=value]*``."""

    name: str
    options: dict[str, str]
    text: str
    """As written."""

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Read ``NAME[:key=value]*``.

        Raises:
            InputError: an empty name, an option without a value, or one given twice.
        """
        from bild.decoding import split_options

        try:
            return cls(*split_options(text), text.strip())
        except ValueError as error:
            raise InputError(f"method {error}") from None

    def value(self, key: str, kind: type[Any]) -> Any:
        """An option that is there, as ``float``, ``int`` or ``str``.

        Raises:
            InputError: it is no number.
        """
        try:
            return kind(self.options[key])
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"method {self.text!r}: {key} is {self.options[key]!r}; allowed is {what}") from None


@dataclass(frozen=True)
class PeerContext:
    """What every peer of a run is told.

    Args:
        large: folder or name of the large checkpoint.
        small: folder or name of the small checkpoint, or ``exit:N``.
        max_new_tokens: longest continuation, tokens, 1…
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        threads: threads an engine may use, 1…
        src_lang: language of the texts of a multilingual checkpoint; None: as its tokenizer is set.
        tgt_lang: likewise of the outputs; None: as its generation config says.
    """

    large: str
    small: str
    max_new_tokens: int
    device: str
    threads: int
    src_lang: str | None = None
    tgt_lang: str | None = None
