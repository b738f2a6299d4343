"""The first bytes of a GGUF file: enough to say in a millisecond that it is cut, split or something else.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bild.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""Bytes the tensors are aligned to where the file does not say."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, arrays left out."""

    name: str
    metadata: dict[str, Any]
    num_weights: int

    @property
    def parts(self) -> int:
        """Files the model was split into; 1 for a whole one."""
        return _whole("split.count", self.metadata.get("split.count", 1), self.name)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file brings a vocabulary."""
        return "tokenizer.ggml.model" in self.metadata


def read_header(file: Path, name: str) -> Header:
    """The header of a file, once it is known to be complete.

    Raises:
        LoadError: no GGUF file, of a version that is not read, or a file that is shorter than it says.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, name).header()
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError):
        raise _cut(name) from None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise LoadError(f"{name} cannot be read as a GGUF file ({error})") from None


class _Reader:
    def __init__(self, content: mmap.mmap, name: str) -> None:
        self.content, self.name, self.at = content, name, 0

    def header(self) -> Header:
        if self.content[:4] != MAGIC:
            raise LoadError(f"{self.name} is no GGUF file: it does not begin with {MAGIC.decode()}")
        self.at = 4
        version, num_tensors, num_values = self.take("IQQ")
        if version not in VERSIONS:
            raise LoadError(f"{self.name} is GGUF version {version}; allowed are {' and '.join(map(str, VERSIONS))}")
        metadata = dict(self.pair() for _ in range(num_values))
        tensors = [self.tensor() for _ in range(num_tensors)]
        alignment = _whole("general.alignment", metadata.get("general.alignment", ALIGNMENT), self.name)
        if alignment < 1:
            raise LoadError(f"{self.name} is damaged: its general.alignment is {alignment}; allowed is 1 or more")
        start = -(-self.at // alignment) * alignment
        if any(start + end > len(self.content) for _, end in tensors):
            raise _cut(self.name)
        return Header(self.name, metadata, sum(count for count, _ in tensors))

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        if self.at + length > len(self.content):
            raise _cut(self.name)
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def pair(self) -> tuple[str, Any]:
        key, (kind,) = self.string(), self.take("I")
        return key, self.value(kind)

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(self.form(kind))[0]
        of, count = self.take("IQ")
        if of in (STRING, ARRAY):
            for _ in range(count):
                self.skip_string() if of == STRING else self.value(ARRAY)
        else:
            self.at += count * struct.calcsize(f"<{self.form(of)}")
        return None

    def skip_string(self) -> None:
        (length,) = struct.unpack_from("<Q", self.content, self.at)
        self.at += 8 + length

    def form(self, kind: int) -> str:
        if kind not in FORMATS:
            raise LoadError(f"{self.name} is damaged: it holds a value of type {kind}, which GGUF does not have")
        return FORMATS[kind]

    def tensor(self) -> tuple[int, int]:
        """Weights of a tensor, and where it ends at the earliest, in bytes behind the start of all tensors."""
        self.string()
        (dimensions,) = self.take("I")
        count = prod(self.take(f"{dimensions}Q"))
        kind, offset = self.take("IQ")
        return count, offset + _bytes(count, kind)


def _bytes(count: int, kind: int) -> int:
    """What the weights take; 0 for a format this version of the package does not know."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return 0
    return count // weights * size


def _whole(key: str, value: object, name: str) -> int:
    if not isinstance(value, int):
        raise LoadError(f"{name} is damaged: its {key} is no whole number")
    return value


def _cut(name: str) -> LoadError:
    return LoadError(f"{name} is damaged or cut short: it ends before its weights do; fetch it again")
