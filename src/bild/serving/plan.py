"""What is served, and how, as plain values: the command line, a file and another process say it alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bild.decoding import parse_pace
from bild.engine import Limits
from bild.errors import InputError, check_count
from bild.generation import BigLittleDecoder
from bild.serving.service import Service
from bild.serving.settings import Keys, Languages, Settings

KEY = "BILD_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is served, and how. Holds digests of keys, never keys.

    Args:
        models: arguments of :meth:`BigLittleDecoder.from_pretrained`.
        languages: those of the inputs and of the outputs of a multilingual checkpoint, where it has to be told.
        limits: of the engine.
        pace: how long drafts may be, see :func:`~bild.decoding.parse_pace`.
        lanes: threads that decode side by side, 1….
        settings: of the server.
    """

    models: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str | None, str | None] = (None, None)
    limits: Limits = field(default_factory=Limits)
    pace: str = "fixed"
    lanes: int = 1
    settings: Settings = field(default_factory=Settings)

    def load(self) -> BigLittleDecoder:
        """The pair."""
        decoder = BigLittleDecoder.from_pretrained(**self.models)
        decoder.set_languages(*self.languages)
        return decoder

    def service(self, decoder: BigLittleDecoder | None = None) -> Service:
        """The pair behind its engine, which is not started.

        Args:
            decoder: the pair, if it is loaded already.
        """
        decoder = self.load() if decoder is None else decoder
        return Service(
            decoder, decoder.engine(self.limits, pace=parse_pace(self.pace), lanes=self.lanes), self.settings
        )


def plan(
    *,
    pair: str | None = None,
    large: str | None = None,
    small: str | None = None,
    middle: str | None = None,
    middle_window: int | None = None,
    drafter: str | None = None,
    reward: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    runtime: str = "auto",
    trust_remote_code: bool = False,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    max_rows: int = 4,
    lanes: int = 1,
    max_cells: int = 65536,
    queue: int = 128,
    queue_tokens: int = 1 << 18,
    prefix_tokens: int = Limits.prefix_tokens,
    pace: str = "fixed",
    timeout: float = 300,
    api_key_file: str | None = None,
    key_requests: int | None = None,
    key_rate: int | None = None,
    cors_origin: Sequence[str] = (),
    model_name: str | None = None,
    translate: Sequence[str] = (),
    metrics_prefix: str = "bild",
    lenient: bool = False,
) -> Plan:
    """A plan from the options of ``bild serve``, under their names; all that may be wrong with them is looked at here.

    Raises:
        InputError: a value out of range, or a file of keys that cannot be read.
    """
    try:
        parse_pace(pace)
    except ValueError as error:
        raise InputError(str(error)) from None
    # As they are called on the command line.
    for name, value in (("lanes", lanes), ("max_rows", max_rows), ("max_cells", max_cells)):
        check_count(name, value)
    models: dict[str, Any] = {"pair": pair, "large": large, "small": small, "drafter": drafter}
    models |= {"middle": middle, "middle_window": middle_window, "reward": reward}
    return Plan(
        models={**models, "dtype": dtype, "device": device, "runtime": runtime, "trust_remote_code": trust_remote_code},
        languages=(src_lang, tgt_lang),
        limits=Limits(
            rows=max_rows, cells=max_cells, queue=queue, queue_tokens=queue_tokens, prefix_tokens=prefix_tokens
        ),
        pace=pace,
        lanes=lanes,
        settings=Settings(
            model=name_of(pair, large) if model_name is None else model_name,
            languages=_languages(translate, bundled=pair is None and large is None and small is None),
            keys=keys_of(api_key_file),
            key_requests=key_requests,
            key_rate=key_rate,
            timeout_s=timeout,
            cors=tuple(cors_origin),
            metrics_prefix=metrics_prefix,
            lenient=lenient,
        ),
    )


def name_of(pair: str | None, large: str | None) -> str:
    """What a pair is called where nobody says."""
    if pair is None and large is None:
        return "de-en"
    named = Path(large if pair is None else pair)  # type: ignore[arg-type]
    return (named.parent if named.suffix == ".json" else named).name or "bild"


def _languages(translate: Sequence[str], *, bundled: bool) -> tuple[Languages, ...]:
    if not translate:
        return (Languages("de", "en"),) if bundled else ()
    return tuple(Languages.parse(each) for each in translate)


def keys_of(place: str | None) -> Keys:
    """Who may ask: by a file, or by the environment."""
    if place is not None:
        return Keys.read(place)
    given = os.environ.get(KEY)
    if given == "":
        raise InputError(f"${KEY} is empty; give it a key, or unset it")
    return Keys() if given is None else Keys.of([given])
