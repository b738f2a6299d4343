"""What a device and a verifier say to each other, as JSON.

A text is opened once; then a device sends, round by round, how many tokens of the text are final and what it drafted
behind them. The verifier knows all of those tokens, so a round that was answered may be asked for again: the number of
final tokens says which one is meant, and random numbers go by position.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bild.errors import InputError

PROTOCOL = 1
DESCRIBE, OPEN, ROUNDS, CLOSE = (f"/v1/verifier{path}" for path in ("", "/sessions", "/rounds", "/close"))
GONE = "session_gone"
"""Code of an error: the verifier does not know the text, or not so far; open it anew."""
OTHER_PAIR, OTHER_MODEL, NO_NUMBERS = "other_vocabulary", "other_model", "scores_not_numbers"
PROBE = "Probe: Ä 1, 2.\nthree (four) «five» naïve  end"
"""A text that both ends read, to see whether their tokenizers agree."""
LONGEST_DRAFT = 4096
"""Tokens of a draft at most."""
KINDS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Opening:
    """A text that is to be verified.

    Args:
        source: encoder input; empty for a decoder-only model.
        prompt: tokens the text starts from, at least one.
        text: new tokens that are final already; some where a verifier was lost.
        acceptance: the rule, as :meth:`bild.Policy.to_dict` has it.
        options: of the scores and the draws, as :class:`bild.GenerationOptions` has them.
        max_new_tokens: longest continuation, 1…
        vocab_size: token ids that both models know are below.
        seed: of the draws, 64 bits; None where none are made.
    """

    source: Sequence[int]
    prompt: Sequence[int]
    text: Sequence[int]
    acceptance: Mapping[str, Any]
    options: Mapping[str, Any]
    max_new_tokens: int
    vocab_size: int
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(value) if name in LISTS else value for name, value in vars(self).items()}

    @classmethod
    def read(cls, value: Any, vocab_size: int) -> Opening:
        """What a stranger sent.

        Args:
            value: of JSON.
            vocab_size: of the verifier's model.

        Raises:
            InputError: it is no opening.
        """
        given = _fields(value, "a session", cls.__dataclass_fields__)
        shared = _whole(given, "vocab_size", 1, vocab_size)
        # A source may hold what only the encoder's vocabulary has.
        lists = {name: _ids(given, name, None if name == "source" else shared) for name in LISTS}
        if not lists["prompt"]:
            raise InputError("prompt is empty; give at least one token")
        seed = None if given.get("seed") is None else _whole(given, "seed", -(1 << 63), (1 << 64) - 1)
        longest = _whole(given, "max_new_tokens", 1, 1 << 24)
        if len(lists["text"]) >= longest:
            raise InputError(f"text has {len(lists['text'])} tokens, and max_new_tokens is {longest}; it has ended")
        acceptance, options = (_fields(given.get(name), name, None) for name in ("acceptance", "options"))
        return cls(lists["source"], lists["prompt"], lists["text"], acceptance, options, longest, shared, seed)


LISTS = ("source", "prompt", "text")


@dataclass(frozen=True)
class Proposal:
    """A round of a text.

    Args:
        session: names the text.
        at: its final tokens, prompt included.
        draft: what the device proposes behind them.
        numbers: of each draft token, where the rule asks for one: its probability on the device.
        certain: whether the device has no distribution, so that the token had probability 1.
        row: the device's distribution ``[V]`` at the first token that was rejected, once the verifier wants it.
    """

    session: str
    at: int
    draft: tuple[int, ...]
    numbers: tuple[float, ...] = ()
    certain: bool = False
    row: Tensor | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same round."""
        return self.at, self.draft, self.numbers, self.certain

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what says nothing is left out."""
        values: dict[str, Any] = {"session": self.session, "at": self.at, "draft": list(self.draft)}
        if self.certain:
            values["certain"] = True
        elif self.numbers:
            values["q"] = list(self.numbers)
        if self.row is not None:
            values["row"] = row_to_dict(self.row)
        return values

    @classmethod
    def read(cls, value: Any, vocab_size: int) -> Proposal:
        """What a stranger sent; see :meth:`Opening.read`."""
        given = _fields(value, "a round", ("session", "at", "draft", "q", "certain", "row"))
        session = given.get("session")
        if not isinstance(session, str):
            raise InputError("a round names no session; open one first")
        draft = tuple(_ids(given, "draft", vocab_size))
        if len(draft) > LONGEST_DRAFT:
            raise InputError(f"the draft has {len(draft)} tokens; allowed are {LONGEST_DRAFT}")
        numbers = tuple(map(_number, _list(given, "q")))
        certain = given.get("certain") is True
        if numbers and (certain or len(numbers) != len(draft)):
            raise InputError(f"q has {len(numbers)} numbers for {len(draft)} draft tokens; give one a token")
        row = None if given.get("row") is None else row_of(given["row"], vocab_size)
        return cls(session, _whole(given, "at", 1, 1 << 31), draft, numbers, certain, row)


@dataclass(frozen=True)
class Answer:
    """What became of a round.

    Args:
        accepted: draft tokens that stay.
        token: what the large model writes behind them; None: it wants the device's distribution there first.
        likeliest: its likeliest token at each place up to the one that it writes.
        distances: of each draft token, to six digits; none where the rule measures none.
        read: tokens the large model read for it.
    """

    accepted: int
    token: int | None
    likeliest: tuple[int, ...] = ()
    distances: tuple[float, ...] = ()
    read: int = 0

    def to_dict(self, draft: Sequence[int]) -> dict[str, Any]:
        """As JSON values, beside the draft that the device knows."""
        values: dict[str, Any] = {"accepted": self.accepted, "read": self.read}
        if self.token is None:
            return values | {"wants": "row"}
        # Mostly it is what stands there anyway.
        written = [*draft[: self.accepted], self.token]
        other = {at: own for at, (own, x) in enumerate(zip(self.likeliest, written, strict=False)) if own != x}
        values["token"] = self.token
        if other:
            values["likeliest"] = other
        if any(self.distances):
            values["distances"] = [float(f"{each:.6g}") if math.isfinite(each) else None for each in self.distances]
        return values

    @classmethod
    def read_from(cls, value: Any, draft: Sequence[int], vocab_size: int) -> Answer:
        """What a verifier sent.

        Raises:
            InputError: it is no answer to this draft.
        """
        given = _fields(value, "an answer", ("accepted", "read", "token", "likeliest", "distances", "wants"))
        accepted, read = _whole(given, "accepted", 0, len(draft)), _whole(given, "read", 0, 1 << 31)
        if given.get("wants") == "row" and accepted < len(draft):
            return cls(accepted, None, read=read)
        token = _whole(given, "token", 0, vocab_size - 1)
        own = [*draft[:accepted], token]
        for place, other in _fields(given.get("likeliest") or {}, "likeliest", None).items():
            own[_place(place, accepted)] = _whole({"likeliest": other}, "likeliest", 0, 1 << 31)
        distances = tuple(_distance(each) for each in given.get("distances") or [0.0] * len(draft))
        if len(distances) != len(draft):
            raise InputError(f"an answer has {len(distances)} distances for {len(draft)} draft tokens")
        return cls(accepted, token, tuple(own), distances, read)


def compact(value: Any) -> bytes:
    """JSON without a space."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def digest(pieces: Mapping[str, int]) -> str:
    """Of a vocabulary: the same for the same pieces with the same ids."""
    table = hashlib.sha256()
    for piece, id in sorted(pieces.items()):
        table.update(piece.encode("utf-8", "surrogatepass") + b"\0%d\0" % id)
    return table.hexdigest()[:32]


def row_to_dict(row: Tensor) -> dict[str, Any]:
    """A distribution ``[V]``: all of it, or what is not zero where that is shorter."""
    host = row.detach().cpu()
    host = host if host.dtype in KINDS.values() else host.float()
    kind = next(name for name, dtype in KINDS.items() if dtype == host.dtype)
    ids = host.nonzero()[:, 0].to(torch.int32)
    values: dict[str, Any] = {"kind": kind, "size": len(host)}
    if len(ids) * (host.itemsize + 4) < len(host) * host.itemsize:
        return values | {"ids": _packed(ids), "values": _packed(host[ids.long()])}
    return values | {"values": _packed(host)}


def row_of(value: Any, vocab_size: int) -> Tensor:
    """The distribution that :func:`row_to_dict` described, padded with zeros to the verifier's vocabulary.

    Raises:
        InputError: it describes none.
    """
    given = _fields(value, "row", ("kind", "size", "ids", "values"))
    size = _whole(given, "size", 1, vocab_size)
    kind = KINDS.get(str(given.get("kind")))
    if kind is None:
        raise InputError(f"row is of kind {given.get('kind')!r}; allowed are {', '.join(KINDS)}")
    numbers = _unpacked(given.get("values"), kind)
    ids = torch.arange(size) if given.get("ids") is None else _unpacked(given["ids"], torch.int32).long()
    fits = len(ids) == len(numbers) and bool(((ids >= 0) & (ids < size)).all())
    if not fits or not bool(torch.isfinite(numbers).all()) or bool((numbers < 0).any()):
        raise InputError("row is no distribution over the vocabulary")
    row = torch.zeros(vocab_size, dtype=kind)
    row[ids] = numbers
    return row


def _packed(numbers: Tensor) -> str:
    return base64.b64encode(numbers.numpy().tobytes()).decode()


def _unpacked(text: Any, kind: torch.dtype) -> Tensor:
    try:
        raw = base64.b64decode(text, validate=True)
        return torch.frombuffer(bytearray(raw), dtype=kind) if raw else torch.zeros(0, dtype=kind)
    except (TypeError, ValueError):
        raise InputError("row holds something other than numbers in base64") from None


def _fields(value: Any, what: str, known: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} is {type(value).__name__}; allowed is a JSON object")
    unknown = [] if known is None else sorted(set(value) - set(known))
    if unknown:
        raise InputError(f"{what} has {unknown[0][:60]!r}; allowed are {', '.join(known)}")
    return value


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = given.get(name)
    if type(value) is not int or not least <= value <= most:
        shown = value if type(value) is int else type(value).__name__
        raise InputError(f"{name} is {shown}; allowed is a whole number, {least} to {most}")
    return value


def _ids(given: Mapping[str, Any], name: str, size: int | None) -> list[int]:
    value = given.get(name)
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise InputError(f"{name} is no list of token ids")
    if size is not None and value and max(value) >= size:
        raise InputError(f"{name} holds token id {max(value)}; allowed is 0 to {size - 1}")
    return value


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if value is not None and not isinstance(value, list):
        raise InputError(f"{name} is no list")
    return value or []


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 + 1e-6:
        raise InputError("q holds something other than probabilities")
    return float(value)


def _place(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise InputError(f"likeliest names place {text[:20]!r}; allowed is 0 to {most}")
    return int(text)


def _distance(value: Any) -> float:
    if value is None:
        return math.inf
    try:
        distance = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        distance = math.nan
    if math.isnan(distance):
        raise InputError("an answer holds a distance that is no number")
    return distance
