"""A pair on disk: its checkpoints and the policy tuned for them, named in a ``bild.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bild.data.files import write_whole
from bild.data.json_text import from_json, to_json
from bild.data.settings import describe_pair
from bild.decoding import Maker, Policy, Recipe
from bild.decoding.drafters.cascade import DEFAULT_WINDOW
from bild.errors import InputError, LoadError
from bild.generation.drafting import check_small, needs_small
from bild.generation.middle import SMALL, check_middle

FILE = "bild.json"
KEYS = ("large", "small", "middle", "policy", "drafter", "evidence")
"""Of that file."""


@dataclass(frozen=True)
class Pair:
    """Where two checkpoints are, and the policy they are decoded with.

    Args:
        large: folder, GGUF file or hub name of the accurate model.
        small: likewise of the cheap one; ``"exit:N"``: the first N decoder layers of the large one; None: there is
            none, and ``drafter`` needs none.
        policy: tuned for the two; the default ``bild`` preset otherwise.
        evidence: how the policy was found (data, scores, machine), kept as it is.
        drafter: who drafts, as text (docs/drafters.md).
        middle: a model in between that judges drafts first: folder, file or hub name; ``"exit:N"``; ``"small"``: the
            small one, where ``drafter`` needs none; None: there is none.
        middle_window: longest draft that it is given, in tokens, 1…

    Raises:
        InputError: a drafter that does not exist, or needs a small model where there is none; likewise a middle one.
    """

    large: str
    small: str | None
    policy: Policy = field(default_factory=Policy)
    evidence: dict[str, Any] = field(default_factory=dict)
    drafter: str = "small"
    middle: str | None = None
    middle_window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        check_small(self.drafter, self.small is not None)
        check_middle(self.middle, self.middle_window, self.drafter, self.small is not None)

    @property
    def cheap(self) -> str:
        """The small checkpoint, where one is needed.

        Raises:
            InputError: the pair names none.
        """
        if self.small is None:
            raise InputError("the pair names no small model, and this needs one; name it with small=… (--small)")
        return self.small

    def describe(self) -> dict[str, Any]:
        """What decides about its texts besides the policy, as plain JSON values; see
        :func:`~bild.data.settings.describe_pair`."""
        return describe_pair(
            self.large, self.small, self.middle, middle_window=self.middle_window, drafter=self.drafter
        )

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> Pair:
        """Read a pair from a folder or a ``.json`` file.

        A folder holds a ``bild.json``, or simply the checkpoints in ``large`` and ``small``. Relative
        paths in the file count from its folder; what is no folder there is a hub name.

        Raises:
            LoadError: no pair there, or a file that is not one.
        """
        path = Path(place)
        if not path.exists():
            raise LoadError(f"no such pair: {path}; give a folder with {FILE}, or with large/ and small/ in it")
        file = path / FILE if path.is_dir() else path
        if not file.exists():
            if (path / "large").is_dir() and (path / "small").is_dir():
                return cls(str(path / "large"), str(path / "small"))
            raise LoadError(f"{path} is no pair: it holds neither {FILE} nor the folders large and small")
        try:
            values = _object(from_json(file.read_bytes()), "the file")
            if unknown := [key for key in values if key not in KEYS]:
                raise ValueError(f"unknown key {unknown[0]!r}; allowed are {', '.join(KEYS)}")
            policy = Policy.from_dict(_object(values["policy"], "policy")) if "policy" in values else Policy()
            large = _relative_to(file.parent, _name(values, "large"))
            drafter = values.get("drafter", "small")
            # A pair of two models says so; only a drafter that needs no small one may leave it out.
            alone = not needs_small(drafter) and values.get("small") is None
            small = None if alone else _relative_to(file.parent, _name(values, "small"))
            middle, window = _middle_of(values.get("middle"), file.parent)
            evidence = _object(values.get("evidence", {}), "evidence")
            return cls(large, small, policy, evidence, drafter, middle, window)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{file} does not describe a pair ({type(error).__name__}: {error})") from None

    def save(self, place: str | os.PathLike[str]) -> Path:
        """Write the file; a folder gets a ``bild.json``. Checkpoints below that folder are named relative to it.

        Raises:
            InputError: the place cannot be written.
        """
        path = Path(place)
        file = path if path.suffix == ".json" else path / FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            values: dict[str, Any] = {
                "large": _seen_from(file.parent, self.large),
                "small": None if self.small is None else _seen_from(file.parent, self.small),
                "policy": self.policy.to_dict(),
                "drafter": self.drafter,
                "evidence": self.evidence,
            }
            if self.middle is not None:
                values["middle"] = {"model": _seen_from(file.parent, self.middle), "window": self.middle_window}
            write_whole(file, to_json(values, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {file} ({error.strerror})") from None
        return file


def bundled_pair() -> Path:
    """The German → English pair that comes with the package: what runs when no checkpoint is named.

    Raises:
        LoadError: an installation without it.
    """
    package = Path(__file__).resolve().parents[1]
    # Inside an installed wheel, or in a checkout beside src.
    for place in (package / "bundled" / "de-en", package.parents[1] / "models" / "de-en"):
        if place.is_dir():
            return place
    raise LoadError("this installation has no bundled pair; name your own with large=… and small=…")


def choose_pair(
    pair: str | os.PathLike[str] | None,
    large: str | os.PathLike[str] | None,
    small: str | os.PathLike[str] | None,
    drafter: str | Maker | None = None,
    middle: str | os.PathLike[str] | None = None,
    middle_window: int | None = None,
) -> Pair:
    """The pair that these names stand for; the bundled one where nothing is named.

    Args:
        pair: a folder or file.
        large: the accurate model; overrides the pair's.
        small: the cheap one, likewise; may be left out where the drafter needs none.
        drafter: who drafts, if that is known; overrides the pair's.
        middle: the model in between, likewise.
        middle_window: longest draft that it is given, likewise.

    Raises:
        InputError: one checkpoint without the other, or a drafter that does not exist.
        LoadError: no pair there.
    """
    for side, name in (("pair", pair), ("large", large), ("small", small), ("middle", middle)):
        if name is not None and not os.fspath(name):
            raise InputError(f"{side} is empty; name a folder, a file or a hub name, or leave it out")
    between = None if middle is None else os.fspath(middle)
    window = DEFAULT_WINDOW if middle_window is None else middle_window
    # Looked at first: a wrong name should not wait for a checkpoint.
    alone = drafter is not None and not needs_small(drafter)
    if pair is None and large is not None and (small is not None or alone):
        named = "small" if drafter is None else _name_of(drafter)
        cheap = None if small is None else os.fspath(small)
        return _checked(
            Pair(os.fspath(large), cheap, drafter=named, middle=between, middle_window=window), middle_window
        )
    if pair is None and (large is not None or small is not None):
        missing = "small" if small is None else "large"
        raise InputError(f"{missing} is missing; name both checkpoints, or a pair")
    loaded = Pair.load(bundled_pair() if pair is None else pair)
    if large is not None or small is not None:
        # Thresholds tuned for other checkpoints say nothing about these.
        other = loaded.small if small is None else os.fspath(small)
        # Nor does a middle model of another large one.
        kept: dict[str, Any] = {"middle": loaded.middle, "middle_window": loaded.middle_window} if large is None else {}
        loaded = Pair(os.fspath(large or loaded.large), other, drafter=loaded.drafter, **kept)
    changes: dict[str, Any] = {} if between is None else {"middle": between}
    if middle_window is not None:
        changes["middle_window"] = middle_window
    if drafter is not None:
        check_small(drafter, loaded.small is not None)
        changes["drafter"] = _name_of(drafter)
    return _checked(replace(loaded, **changes), middle_window)


def _name_of(drafter: str | Maker) -> str:
    """A function has no name; whoever gave it hands it on, and it is taken for one that needs no small model."""
    return str(drafter) if isinstance(drafter, str | Recipe) else "ngram"


def _checked(pair: Pair, window: int | None) -> Pair:
    if window is not None and pair.middle is None:
        raise InputError(f"middle_window is {window}, and there is no middle model; name one with middle=… (--middle)")
    return pair


def _middle_of(value: Any, folder: Path) -> tuple[str | None, int]:
    """A pair file's middle model and its window."""
    if value is None:
        return None, DEFAULT_WINDOW
    fields: dict[str, Any] = {"model": value} if isinstance(value, str) else dict(value)
    name, window = fields.pop("model"), fields.pop("window", DEFAULT_WINDOW)
    if fields:
        raise ValueError(f"middle has {min(fields)!r}; allowed are model and window")
    return name if name == SMALL else _relative_to(folder, name), window


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {value!r:.60}; it must be an object, as {{}}")
    return value


def _name(values: dict[str, Any], side: str) -> str:
    name = values.get(side)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{side} is {name!r:.60}; it must be the folder, file or hub name of the {side} model")
    return name


def _relative_to(folder: Path, name: str) -> str:
    inside = folder / name
    return str(inside) if inside.exists() else str(name)


def _seen_from(folder: Path, name: str) -> str:
    path = Path(name)
    if not path.exists():
        return name
    absolute, base = path.resolve(), folder.resolve()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
