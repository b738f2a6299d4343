"""LibreTranslate's API: texts, lists and HTML, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bild.serving import fields
from bild.serving.fields import Check, anything, boolean, text
from bild.serving.markup import cut_html, escape
from bild.serving.problems import Problem, bad
from bild.serving.sentences import Piece, cut
from bild.serving.service import MOST_BEAMS, Ask, Service, Text
from bild.serving.settings import Languages

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "hi": "Hindi", "hu": "Hungarian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nb": "Norwegian",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip
CERTAIN = 100.0
"""Confidence that a text is in the one language there is: nothing is detected."""


@fields.says({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
def _texts(name: str, value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise fields.refuse(name, value, "a text or a list of texts")
    return value


LEAST_BEAMS = 4
"""Of a search for alternatives, as Argos Translate has them."""


@fields.says({"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_BEAMS - 1}, {"type": "string"}]})
def _alternatives(name: str, value: Any) -> int:
    # A form has no numbers.
    is_number = isinstance(value, str) and (value == "" or (value.isdecimal() and len(value) < len("1000")))
    given = int(value or "0") if is_number else value
    return int(fields.whole(0, MOST_BEAMS - 1)(name, given))


WORDS = {"true": True, "1": True, "false": False, "0": False, "": False}


@fields.says({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": list(WORDS)}]})
def _flag(name: str, value: Any) -> bool:
    # A form has no booleans either.
    return bool(boolean(name, WORDS.get(value, value) if isinstance(value, str) else value))


FIELDS: dict[str, Check] = {
    "q": _texts,
    "source": text,
    "target": text,
    "format": text,
    "alternatives": _alternatives,
    "policy": fields.short(1000),
    "lossless": _flag,
    "api_key": anything,
    "secret": anything,
}
DETECT_FIELDS: dict[str, Check] = {"q": text, "api_key": anything}


@dataclass(frozen=True)
class Translation:
    """A request to translate.

    Args:
        pages: each text in its pieces.
        many: whether they came as a list.
        languages: from which into which.
        html: whether they are HTML.
        detect: whether the client wants to know the source language.
        ask: what is to be decoded: all sentences.
    """

    pages: Sequence[Sequence[Piece]]
    many: bool
    languages: Languages
    html: bool
    detect: bool
    ask: Ask

    def answer(self, texts: Sequence[Text]) -> dict[str, Any]:
        """LibreTranslate's answer, of the translations of all sentences in order."""
        pages, *others = (self._pages(texts, place) for place in range(1 + self.ask.others))
        found: dict[str, Any] = {"translatedText": pages if self.many else pages[0]}
        if others:
            each = [[other[at] for other in others] for at in range(len(pages))]
            found["alternatives"] = each if self.many else each[0]
        if self.detect:
            one = {"confidence": CERTAIN, "language": self.languages.source}
            found["detectedLanguage"] = [dict(one) for _ in pages] if self.many else one
        return found

    def _pages(self, texts: Sequence[Text], place: int) -> list[str]:
        """All texts, of the hypotheses of their sentences in this place; the last of those that have fewer."""
        made = iter(texts)
        return ["".join(self._shown(piece, made, place) for piece in page) for page in self.pages]

    def _shown(self, piece: Piece, made: Iterator[Text], place: int) -> str:
        if not piece.said:
            return piece.text
        text = next(made)
        found = [text.writing, *text.others]
        shown = found[min(place, len(found) - 1)].text
        return escape(shown) if self.html else shown


def translation(service: Service, body: Any) -> Translation:
    """What a body sent to ``/translate`` asks for.

    Raises:
        Problem: a field that cannot be used.
    """
    check_any(service)
    given = fields.read(body, FIELDS, service.board.unknown if service.settings.lenient else None)
    for name in ("q", "source", "target"):
        if not given.get(name):
            raise bad(f"Invalid request: missing {name} parameter", name)
    kind = given.get("format", "text")
    if kind not in ("text", "html"):
        raise bad(f"format is {kind[: fields.SHOWN]!r}; allowed are text and html", "format")
    languages = _languages(service, given["source"], given["target"])
    many = isinstance(given["q"], list)
    pages = [cut_html(each) if kind == "html" else cut(each) for each in (given["q"] if many else [given["q"]])]
    sentences = [piece.text for page in pages for piece in page if piece.said]
    options: dict[str, Any] = {"prefix": languages.prefix} if languages.prefix else {}
    others = given.get("alternatives", 0)
    if others:
        options["num_beams"] = max(LEAST_BEAMS, 1 + others)
    ask = Ask(
        items=sentences,
        options=options,
        others=others,
        policy=given.get("policy"),
        lossless=given.get("lossless", False),
    )
    return Translation(pages, many, languages, kind == "html", given["source"] == "auto", ask)


def check_any(service: Service) -> None:
    """Whether this server translates.

    Raises:
        Problem: it does not.
    """
    if not service.settings.languages:
        raise Problem(
            404, "invalid_request_error", "this server was told no languages; start it with --translate de:en"
        )


def languages(service: Service) -> list[dict[str, Any]]:
    """LibreTranslate's list of languages."""
    check_any(service)
    known = service.settings.languages
    codes = dict.fromkeys([each.source for each in known] + [each.target for each in known])
    return [
        {
            "code": code,
            "name": NAMES.get(code.split("-")[0].lower(), code),
            "targets": [each.target for each in known if each.source == code],
        }
        for code in codes
    ]


def detect(service: Service, body: Any) -> list[dict[str, Any]]:
    """The source languages there are; nothing is detected where there is one."""
    check_any(service)
    given = fields.read(body, DETECT_FIELDS, service.board.unknown if service.settings.lenient else None)
    if not given.get("q"):
        raise bad("Invalid request: missing q parameter", "q")
    sources = dict.fromkeys(each.source for each in service.settings.languages)
    return [{"confidence": CERTAIN / len(sources), "language": code} for code in sources]


def _languages(service: Service, source: str, target: str) -> Languages:
    known = service.settings.languages
    sources = {each.source for each in known}
    if source == "auto" and len(sources) == 1:
        source = next(iter(sources))
    if source not in sources:
        raise bad(f"{source[: fields.SHOWN]} is not supported; allowed are {', '.join(sorted(sources))}", "source")
    for each in known:
        if each.source == source and each.target == target:
            return each
    targets = ", ".join(each.target for each in known if each.source == source)
    raise bad(f"{target[: fields.SHOWN]} is not supported; allowed are {targets}", "target")
