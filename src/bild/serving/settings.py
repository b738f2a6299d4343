"""What a server is told when it starts."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bild.errors import InputError, reading

METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
"""What may stand in front of the name of a metric."""


@dataclass(frozen=True)
class Keys:
    """Who may ask, by the digests of their keys; nobody is asked for one where there is none."""

    digests: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.digests)

    @classmethod
    def of(cls, keys: list[str]) -> Self:
        """Of keys as they are written."""
        return cls(tuple(_digest(key) for key in keys))

    @classmethod
    def read(cls, place: str) -> Self:
        """Of a file with one key a line; blank lines and lines that begin with # are left out.

        Raises:
            InputError: the file cannot be read, or holds no key.
        """
        with reading(place):
            lines = [line.strip() for line in Path(place).read_text(encoding="utf-8").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InputError(f"{place} holds no key; write one a line, or start without --api-key-file")
        return cls.of(keys)

    def allow(self, given: str | None) -> bool:
        """Whether somebody with this key may ask. Takes as long for any wrong key."""
        return not self.digests or self.who(given) is not None

    def who(self, given: str | None) -> bytes | None:
        """The digest of a key that is known; None: it is not, or there are none."""
        digest = _digest("" if given is None else given)
        return digest if any([hmac.compare_digest(digest, known) for known in self.digests]) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Languages:
    """What ``/translate`` translates from and into.

    Args:
        source: code of the source language, as in ``de``.
        target: of the target language.
        prefix: text that is put before every sentence.
    """

    source: str
    target: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SOURCE:TARGET[=PREFIX]``.

        Raises:
            InputError: text of another form.
        """
        codes, _, prefix = text.partition("=")
        source, colon, target = codes.partition(":")
        if not (colon and source.strip() and target.strip()):
            raise InputError(f"translate is {text!r}; write SOURCE:TARGET or SOURCE:TARGET=PREFIX, as in de:en")
        return cls(source.strip(), target.strip(), prefix)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server is told when it starts.

    Args:
        model: name of the pair in ``/v1/models``.
        languages: pairs of languages that ``/translate`` takes; none: there is no such API.
        keys: who may ask.
        key_requests: requests of one key that are answered at the same time, 1…; None: any number.
        key_rate: requests of one key in a minute, 1…; None: any number.
        timeout_s: longest time a request may take, in seconds, above 0.
        receive_s: longest time the whole of a request may take to arrive, in seconds.
        send_s: longest time a client may take to read a piece of an answer, in seconds.
        ping_s: silence after which a stream says that it is still there, in seconds.
        body_bytes: largest body.
        header_bytes: largest headers, all together.
        items: most texts of a request: prompts × n, or sentences.
        stops: most stop strings of a request.
        cors: origins of pages that may ask from a browser.
        metrics_prefix: in front of the names in ``/metrics``; ``vllm`` makes boards for that one work.
        lenient: whether unknown fields are counted and passed over instead of refused.

    Raises:
        InputError: a value out of range, or a limit of keys where there are none.
    """

    model: str = "bild"
    languages: tuple[Languages, ...] = ()
    keys: Keys = field(default_factory=Keys)
    key_requests: int | None = None
    key_rate: int | None = None
    timeout_s: float = 300
    receive_s: float = 10
    send_s: float = 30
    ping_s: float = 15
    body_bytes: int = 1 << 20
    header_bytes: int = 1 << 14
    items: int = 4096
    stops: int = 4
    cors: tuple[str, ...] = ()
    metrics_prefix: str = "bild"
    lenient: bool = False

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise InputError(f"timeout is {self.timeout_s:g}; allowed is more than 0")
        if not self.model.strip():
            raise InputError("model_name is empty; give a name, or leave it out")
        if not METRIC.fullmatch(self.metrics_prefix):
            raise InputError(
                f"metrics_prefix is {self.metrics_prefix!r}; allowed are letters, digits and _, not a digit first"
            )
        if not all(origin.strip() for origin in self.cors):
            raise InputError("a cors_origin is empty; give one as in https://example.org, or * for all")
        for name, value in (("key_requests", self.key_requests), ("key_rate", self.key_rate)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; allowed is 1 or more")
            if value is not None and not self.keys:
                raise InputError(f"{name} limits what one key may ask for, and there are none; give keys, too")
