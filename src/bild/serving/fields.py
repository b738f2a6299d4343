"""Fields of a request's body: each has a kind and a range; null is as good as absent; an unknown one is refused."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from bild.serving.problems import bad

Check = Callable[[str, Any], Any]
"""Takes a field's name and value, and returns the value or raises what is wrong with it."""
SCHEMA = "schema"
SHOWN = 60
"""Characters of a wrong value that are repeated."""
DEEPEST = 32
NO_JSON = "the body is not JSON in UTF-8"


def says(schema: Mapping[str, Any]) -> Callable[[Check], Check]:
    """Note what a check takes, as JSON Schema, for ``/openapi.json``."""

    def noted(check: Check) -> Check:
        setattr(check, SCHEMA, dict(schema))
        return check

    return noted


def schema_of(check: Check) -> dict[str, Any]:
    """What a check takes; null is as good as absent."""
    found: dict[str, Any] = getattr(check, SCHEMA, {})
    return {"anyOf": [found, {"type": "null"}]} if found else {}


def object_of(known: Mapping[str, Check], required: Iterable[str] = ()) -> dict[str, Any]:
    """An object of these fields and no others."""
    properties = {name: schema_of(check) for name, check in known.items()}
    needed = list(required)
    # What has to be there may not be null.
    properties |= {name: getattr(known[name], SCHEMA, {}) for name in needed}
    return {"type": "object", "properties": properties, "additionalProperties": False} | (
        {"required": needed} if needed else {}
    )


def refuse(name: str, value: Any, allowed: str) -> Exception:
    """The error of a field."""
    kind = type(value).__name__
    shown = json.dumps(value) if isinstance(value, int | float | bool) else kind
    return bad(f"{name} is {shown[:SHOWN]}; allowed is {allowed}", name)


def whole(least: int, most: int) -> Check:
    """A whole number in a range."""

    @says({"type": "integer", "minimum": least, "maximum": most})
    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise refuse(name, value, f"a whole number, {least} to {most}")
        return value

    return check


def number(least: float, most: float) -> Check:
    """A number in a range."""

    @says({"type": "number", "minimum": least, "maximum": most})
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise refuse(name, value, f"a number, {least:g} to {most:g}")
        return float(value)

    return check


@says({"type": "boolean"})
def boolean(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise refuse(name, value, "true or false")
    return value


@says({"type": "string"})
def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise refuse(name, value, "a text")
    return value


def short(longest: int) -> Check:
    """A text of a few words."""

    @says({"type": "string", "maxLength": longest})
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise refuse(name, value, f"a text of at most {longest} characters")
        return value

    return check


def texts(most: int, longest: int) -> Check:
    """A text or a list of texts, none of them empty."""
    one = {"type": "string", "minLength": 1, "maxLength": longest}

    @says({"anyOf": [one, {"type": "array", "maxItems": most, "items": one}]})
    def check(name: str, value: Any) -> list[str]:
        given = [value] if isinstance(value, str) else value
        fine = isinstance(given, list) and all(isinstance(each, str) and 0 < len(each) <= longest for each in given)
        if not fine or len(given) > most:
            raise refuse(name, value, f"a text, or a list of at most {most}, of 1 to {longest} characters each")
        return list(given)

    return check


def ids(most: int) -> Check:
    """A list of token ids."""

    @says({"type": "array", "maxItems": most, "items": {"type": "integer"}})
    def check(name: str, value: Any) -> list[int]:
        if not isinstance(value, list) or len(value) > most or not all(type(each) is int for each in value):
            raise refuse(name, value, f"a list of at most {most} token ids")
        return value

    return check


def mapping(**known: Check) -> Check:
    """An object with these fields."""

    @says(object_of(known))
    def check(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse(name, value, "an object")
        for key in value:
            if key not in known:
                raise bad(f"{name} has an unknown field {key[:SHOWN]!r}{_meant(key, known)}", name)
        return {key: known[key](f"{name}.{key}", each) for key, each in value.items() if each is not None}

    return check


def one_of(*values: Any) -> Check:
    """One of these."""

    @says({"enum": list(values)})
    def check(name: str, value: Any) -> Any:
        if not any(value == each and type(value) is type(each) for each in values):
            raise refuse(name, value, " or ".join(json.dumps(each) for each in values))
        return value

    return check


def neutral(*values: Any) -> Check:
    """Something that is not supported, and accepted only where it changes nothing."""

    @says({"enum": [*values, None]})
    def check(name: str, value: Any) -> None:
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            allowed = " or ".join(json.dumps(each) for each in values) if values else "null"
            raise bad(f"{name} is not supported here; leave it out (or send {allowed})", name, "unsupported_value")

    return check


def anything(name: str, value: Any) -> None:
    """Accepted, and without meaning here."""


def read(body: Any, known: Mapping[str, Check], lenient: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The fields of a body that say something.

    Args:
        body: as it came.
        known: every field that may be there.
        lenient: is told of unknown fields, which are then passed over; None: they are refused.

    Raises:
        Problem: a body or a field that cannot be used.
    """
    if not isinstance(body, dict):
        raise bad(f"the body is {'an array' if isinstance(body, list) else 'no object'}; send a JSON object")
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name not in known:
            if lenient is None:
                raise bad(f"unknown field {name[:SHOWN]!r}{_meant(name, known)}", name[:SHOWN], "unknown_field")
            lenient(name)
        elif value is not None:
            found[name] = known[name](name, value)
    return {name: value for name, value in found.items() if value is not None}


def parse(raw: bytes, content_type: str = "application/json") -> Any:
    """What a body says: JSON, or a form where its type says so.

    Raises:
        Problem: neither, or something no answer could repeat.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/x-www-form-urlencoded":
            return _form(raw.decode("utf-8"))
        if kind.startswith("multipart/"):
            raise bad("multipart bodies are not read here; send JSON, or application/x-www-form-urlencoded")
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
        _check(value)
    except RecursionError:
        raise bad("the body is nested too deep") from None
    except ValueError as error:
        # Python refuses whole numbers of more digits than it wants to read.
        raise (_too_large() if "integer string conversion" in str(error) else bad(NO_JSON)) from None
    return value


def _too_large() -> Exception:
    return bad("the body holds a number that is too large")


def _form(raw: str) -> dict[str, Any]:
    pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=10_000)
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            fields[name] = [*(fields[name] if isinstance(fields[name], list) else [fields[name]]), value]
        else:
            fields[name] = value
    return fields


def _no_number(name: str) -> None:
    raise ValueError(name)


def _check(value: Any, depth: int = 0) -> None:
    """Refuse what is nested too deep, no number, or half a character."""
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise bad("the body holds half of a surrogate pair, which is no character; leave it out") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise _too_large()
    elif isinstance(value, dict):
        for key, each in value.items():
            _check(key, depth + 1)
            _check(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, depth + 1)


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:SHOWN], list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
