"""Lines of text as people have them: any Unicode encoding with a mark, any line end, gzipped or not, read lazily.

A line ends at a line feed, with the carriage returns before it; a file without any line feed ends its lines with
carriage returns, as old Macs did. Nothing else ends a line: form feeds and Unicode's line separators are part of a
text. So line n here is line n of ``wc`` and of the file beside it.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bild.errors import InputError, reading

CHUNK = 1 << 16
"""Bytes read at once, at most: a pipe hands out less, as it comes."""
UNDECIDED = 1 << 20
"""Characters without a line feed after which carriage returns are taken for line ends."""
GZIP = b"\x1f\x8b"
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and what follows them."""
ZEROS = 4
"""A file of which more than one byte in so many is zero is UTF-16 without its mark."""
ESCAPED = 0xDC00
"""Bytes that are no text stand in a line as this plus their value: half a surrogate pair, which no encoding yields."""
HALF_PAIR = re.compile("[\ud800-\udfff]")


class Line(NamedTuple):
    """One line of a file, or why it cannot be used."""

    number: int
    """From 1 on."""
    text: str
    error: str | None = None


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file, as they are asked for.

    Args:
        path: text, gzipped or not, whatever its suffix.

    Raises:
        InputError: a file that cannot be opened or begins with something that is no text, at once; one that cannot
            be read to its end, when the line is asked for that it breaks off in.
    """
    with reading(path):
        file = path.open("rb")
    return _after_the_first(_closing(file, lines_of(file, str(path))))


def lines_of(file: BinaryIO, name: str) -> Iterator[Line]:
    """The lines of a binary file, stdin among them, each as soon as it is there.

    Args:
        file: open for reading.
        name: for error messages.
    """
    encoding, pieces = _decoded(_chunks(file, name), name)
    for number, text in enumerate(_split(pieces), 1):
        yield Line(number, text, problem(text, encoding.upper()))


def count_lines(path: Path) -> int:
    """How many lines :func:`read_lines` hands out, ten times faster.

    Raises:
        InputError: a file that cannot be read to its end.
    """
    with reading(path), path.open("rb") as file:
        return sum(1 for _ in _split(_decoded(_chunks(file, str(path)), str(path))[1]))


def problem(text: str, encoding: str = "UTF-8") -> str | None:
    """What is wrong with the characters of a text, None where nothing is.

    Args:
        text: from a file, the command line or JSON.
        encoding: what it was read as.
    """
    found = None if text.isascii() else HALF_PAIR.search(text)
    if found is not None:
        value, at = ord(found.group()), found.start()
        if ESCAPED <= value <= ESCAPED + 0xFF:
            at = len(text[:at].encode())
            return f"not {encoding} (byte {value - ESCAPED:#04x} at {at}); convert the file"
        return f"half of a surrogate pair ({value:#06x} at {at}), which is no character; leave it out"
    if "\0" in text:
        return f"a zero character at {text.index(chr(0))}, as in UTF-16 without its mark; convert the file to UTF-8"
    return None


def _after_the_first(lines: Iterator[Line]) -> Iterator[Line]:
    """The same lines, the first read now: what is wrong with a file should be known before it is used."""
    first = next(lines, None)

    def every() -> Iterator[Line]:
        if first is not None:
            yield first
            yield from lines

    return every()


def _closing(file: BinaryIO, lines: Iterator[Line]) -> Iterator[Line]:
    with file:
        yield from lines


def _chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """What a file holds, unzipped, the first piece long enough to hold any mark."""
    read1: Callable[[int], bytes] = getattr(file, "read1", file.read)

    def raw() -> Iterator[bytes]:
        while True:
            with reading(name):
                chunk = read1(CHUNK)
            if not chunk:
                return
            yield chunk

    yield from _whole_mark(_unzipped(_whole_mark(raw()), name))


def _whole_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Join the first pieces while they could be the beginning of a mark."""
    starts = (GZIP, *(mark for mark, _ in MARKS))
    head = b""
    for chunk in chunks:
        head += chunk
        if not any(len(head) < len(start) and start.startswith(head) for start in starts):
            break
    if head:
        yield head
    yield from chunks


def _unzipped(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    first = next(chunks, b"")
    if not first.startswith(GZIP):
        yield first
        yield from chunks
        return
    broken = f"cannot read {name}: not a whole gzip file"
    unzip = zlib.decompressobj(wbits=31)
    whole = True
    for chunk in chain([first], chunks):
        rest = chunk
        while rest:
            try:
                yield unzip.decompress(rest)
            except zlib.error as error:
                raise InputError(f"{broken} ({error})") from None
            whole = unzip.eof
            rest = unzip.unused_data
            if whole:
                # Such files are appended to one another, and padded with zeros.
                unzip, rest = zlib.decompressobj(wbits=31), rest.lstrip(b"\0")
    if not whole:
        raise InputError(f"{broken} (it breaks off)")


def _decoded(chunks: Iterator[bytes], name: str) -> tuple[str, Iterator[str]]:
    """The encoding, and the text piece by piece without its mark."""
    first = next(chunks, b"")
    mark, encoding = next(((mark, name) for mark, name in MARKS if first.startswith(mark)), (b"", "utf-8"))
    # Half of the bytes of UTF-16 are zeros where its letters are ASCII's; a single one is the fault of its line.
    if not mark and first.count(b"\0") * ZEROS > len(first):
        raise InputError(
            f"cannot read {name}: it holds zero bytes, as UTF-16 without a byte order mark does; convert it to UTF-8"
        )
    codecs.register_error("bild.escape", _escape)
    decoder = codecs.getincrementaldecoder(encoding)("bild.escape")

    def pieces() -> Iterator[str]:
        for chunk in chain([first[len(mark) :]], chunks):
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    return encoding, pieces()


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(ESCAPED + byte) for byte in error.object[error.start : error.end]), error.end


def _split(pieces: Iterator[str]) -> Iterator[str]:
    """The lines of a text, without their ends."""
    head: list[str] = []
    for piece in pieces:
        head.append(piece)
        if "\n" in piece or (sum(map(len, head)) > UNDECIDED and any("\r" in part for part in head)):
            break
    begun = "".join(head)
    end = "\r" if "\r" in begun and "\n" not in begun else "\n"
    return (line.rstrip("\r") for line in _cut(chain([begun], pieces), end))


def _cut(pieces: Iterable[str], end: str) -> Iterator[str]:
    """What stands between the ends, and after the last one if anything does."""
    begun: list[str] = []
    for piece in pieces:
        first, *others = piece.split(end)
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    last = "".join(begun)
    if last:
        yield last
