"""Measured tables inside hand-written pages: the text between two markers is rewritten."""

from __future__ import annotations

from pathlib import Path

from bild.errors import InputError

DOCS = Path(__file__).resolve().parents[1] / "docs"
PERFORMANCE = DOCS / "performance.md"


def replace_section(file: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name:begin -->`` and ``<!-- name:end -->``, in place of what was there.

    Args:
        file: a Markdown page that holds each marker once, on a line of its own.
        name: of the section.
        text: Markdown.

    Raises:
        InputError: no such page, or a marker that is missing, doubled or out of order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if not file.is_file():
        raise InputError(f"no such page: {file}; write it with the lines {begin} and {end}")
    page = file.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise InputError(f"{file} needs the lines {begin} and {end}, once each and in this order")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    file.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
