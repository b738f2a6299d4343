"""Drafters by name: ``"ngram"``, ``"small"``, ``"first:ngram,small"``, ``"bandit:rule=exp3:ngram:window=8,small"``,
``"backoff:file=ngrams.safetensors"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bild.decoding.drafters.backoff import Backoff
from bild.decoding.drafters.bandit import Bandit
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.first import First
from bild.decoding.drafters.ngram import NGram
from bild.decoding.drafters.ngrams import Ngrams
from bild.decoding.presets import split_options
from bild.errors import InputError


@dataclass(frozen=True)
class Kit:
    """What a drafter for a new group of rows may be made of.

    Args:
        small: begins the small model beside the large one.
        vocab_size: token ids that may be proposed are below.
        rows: that begin together, 1…
    """

    small: Callable[[], Drafter]
    vocab_size: int
    rows: int = 1


Maker = Callable[[Kit], Drafter]
"""Makes the drafter of a new group of rows, which may join another group later."""
SMALL, NGRAM, BACKOFF = "small", "ngram", "backoff"
SEVERAL: dict[str, Callable[..., Drafter]] = {"first": First, "bandit": Bandit}
"""Drafters made of others."""
OPTIONS: dict[str, dict[str, type]] = {
    SMALL: {},
    NGRAM: {"window": int, "longest": int, "shortest": int, "look_in": str, "which": str},
    BACKOFF: {"file": str},
    "first": {},
    "bandit": {"rule": str, "reward": str, "step_cost": float, "read_cost": float},
}
"""Options of each drafter, and what they are."""
FORMS = (
    "small, ngram, backoff:file=FILE, first:ngram,small or bandit:ngram,small, each name with :option=value behind it"
)


@dataclass(frozen=True)
class Recipe:
    """A drafter as it is written down; a :data:`Maker`.

    Args:
        name: of :data:`OPTIONS`.
        options: arguments of the drafter.
        parts: what a drafter of several is made of, in order.

    Raises:
        ValueError: an option out of range.
    """

    name: str = SMALL
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    parts: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        # Wrong options are found now, wherever the drafter is first needed.
        if self.name == BACKOFF:
            if "file" not in self.options:
                raise ValueError(f"drafter {BACKOFF!r} needs the counts; write {BACKOFF}:file=FILE (bild train-ngram)")
            Ngrams.load(self.options["file"])
        elif self.parts:
            SEVERAL[self.name]([NGram() for _ in self.parts], **self.options)
        else:
            self(Kit(NGram, 1))

    def __call__(self, kit: Kit) -> Drafter:
        """The drafter of a new group of rows."""
        if self.name == SMALL:
            return kit.small()
        if self.name == NGRAM:
            return NGram(**self.options, vocab_size=kit.vocab_size)
        if self.name == BACKOFF:
            return Backoff(self._counts(kit.vocab_size), kit.rows)
        return SEVERAL[self.name]([part(kit) for part in self.parts], **self.options)

    def _counts(self, vocab_size: int) -> Ngrams:
        ngrams = Ngrams.load(self.options["file"])
        if ngrams.vocab_size != vocab_size:
            raise InputError(
                f"{self.options['file']} counts a vocabulary of {ngrams.vocab_size} tokens, these models share "
                f"{vocab_size}; make counts for them with bild train-ngram"
            )
        return ngrams

    def __str__(self) -> str:
        own = ":".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])
        return f"{own}:{','.join(map(str, self.parts))}" if self.parts else own

    @property
    def files(self) -> tuple[str, ...]:
        """That it reads."""
        own = (self.options["file"],) if self.name == BACKOFF else ()
        return (*own, *(file for part in self.parts for file in part.files))

    @property
    def needs_small(self) -> bool:
        """Whether it cannot be made without a small model."""
        return self.name == SMALL or any(part.needs_small for part in self.parts)


def parse_drafter(text: str) -> Recipe:
    """Read ``NAME[:option=value]*`` or, of several, ``NAME[:option=value]*:DRAFTER[,DRAFTER]*``.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    name, _, rest = text.strip().partition(":")
    if name not in SEVERAL:
        return _one(text)
    own, pieces = [name], rest.split(":")
    while pieces and "=" in pieces[0] and "," not in pieces[0]:
        own.append(pieces.pop(0))
    members = [member.strip() for member in ":".join(pieces).split(",")]
    if not all(members):
        raise ValueError(f"drafter {text!r} names no drafter, or an empty one, behind {name}; write {FORMS}")
    for member in members:
        if member.partition(":")[0] in SEVERAL:
            raise ValueError(f"drafter {text!r} has {member!r} inside; only small, ngram and backoff can stand there")
    if members.count(SMALL) > 1:
        raise ValueError(f"drafter {text!r} names {SMALL} twice; there is one small model, name it once")
    return _one(":".join(own), tuple(_one(member) for member in members))


def _one(text: str, parts: tuple[Recipe, ...] = ()) -> Recipe:
    name, options = split_options(text)
    if name not in OPTIONS:
        raise ValueError(f"drafter {name!r} is unknown; write {FORMS}")
    known = OPTIONS[name]
    for key in options:
        if key not in known:
            allowed = f"allowed are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"drafter {name!r} has no option {key!r}; {allowed}")
    return Recipe(name, {key: _value(key, value, known[key]) for key, value in options.items()}, parts)


def _value(key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key} is {text!r}; allowed is a {'whole ' if kind is int else ''}number") from None
