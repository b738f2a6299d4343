"""HTML cut into its text and its tags; tags, comments, scripts and spaces stay byte for byte."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from bild.serving.sentences import Piece, cut

CLOSING = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style")}
"""What ends a part whose text nobody reads."""
BLANK = re.compile(r"\s+|&#?\w+;")
"""A space, or what may stand for one."""
VALUE = re.compile(r"=\s*([\"'])")
"""Where the value of an attribute begins that may hold anything but its quotation mark."""


def cut_html(page: str) -> list[Piece]:
    """The sentences of a page's text, unescaped, and everything else as it is."""
    found: list[Piece] = []
    for text, is_text in _parts(page):
        if is_text:
            for piece in cut(text):
                found += _unescaped(piece.text) if piece.said else [piece]
        else:
            found.append(Piece(text, False))
    return found


def _unescaped(text: str) -> list[Piece]:
    """A sentence without its escapes; spaces at its ends that are written as such stay as they are."""
    blanks = [found.span() for found in BLANK.finditer(text) if html.unescape(found.group()).isspace()]
    start, end = 0, len(text)
    for first, last in blanks:
        start = last if first == start else start
    for first, last in reversed(blanks):
        end = first if last == end and end > start else end
    parts = ((text[:start], False), (html.unescape(text[start:end]), True), (text[end:], False))
    return [Piece(part, said) for part, said in parts if part]


def escape(text: str) -> str:
    """A text as it stands between tags."""
    return html.escape(text, quote=False)


def _parts(page: str) -> Iterator[tuple[str, bool]]:
    """Text and tags in turn. Each place is looked at once, whatever is left open."""
    at = 0
    while at < len(page):
        opens = page.find("<", at)
        while opens >= 0 and not _begins(page, opens):
            opens = page.find("<", opens + 1)
        if opens < 0:
            yield page[at:], True
            return
        if opens > at:
            yield page[at:opens], True
        at = _behind(page, opens)
        yield page[opens:at], False


def _begins(page: str, at: int) -> bool:
    """Whether a tag or a comment begins here; "3 < 4" has none."""
    after = page[at + 1 : at + 2]
    return after.isalpha() or after in ("/", "!", "?")


def _behind(page: str, at: int) -> int:
    """Where a tag, a comment or a script ends; at the end of the page where it never does."""
    for begin, end_of in (("<!--", "-->"), ("<![CDATA[", "]]>")):
        if page.startswith(begin, at):
            return _end(page, end_of, at)
    end = _end_of_tag(page, at)
    for name in CLOSING:
        if (
            page[at + 1 : at + 1 + len(name)].lower() == name
            and not page[at + 1 + len(name) : at + 2 + len(name)].isalnum()
        ):
            closing = CLOSING[name].search(page, end)
            return len(page) if closing is None else _end(page, ">", closing.start())
    return end


def _end_of_tag(page: str, at: int) -> int:
    end = page.find(">", at)
    while end >= 0:
        value = VALUE.search(page, at, end)
        closing = -1 if value is None else page.find(value.group(1), value.end())
        if closing < 0:
            return end + 1
        at = closing + 1
        end = page.find(">", at) if at > end else end
    return len(page)


def _end(page: str, mark: str, at: int) -> int:
    found = page.find(mark, at)
    return len(page) if found < 0 else found + len(mark)
