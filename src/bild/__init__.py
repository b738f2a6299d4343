"""Big Little Decoder: a small and a large language model that decode together.

decoder = bild.BigLittleDecoder.from_pretrained()
print(decoder.generate("Ich habe Hunger.")[0].text)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bild.decoding import Commit, Policy, Stats
    from bild.errors import BildError, InputError, LoadError, VocabularyError
    from bild.generation import BigLittleDecoder, GenerationOptions, Pair, Result, Stream
    from bild.generation.transformers import custom_generate

try:
    __version__ = version("bild")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "BigLittleDecoder": "bild.generation",
    "BildError": "bild.errors",
    "Commit": "bild.decoding",
    "GenerationOptions": "bild.generation",
    "InputError": "bild.errors",
    "LoadError": "bild.errors",
    "Pair": "bild.generation",
    "Policy": "bild.decoding",
    "Result": "bild.generation",
    "Stats": "bild.decoding",
    "Stream": "bild.generation",
    "VocabularyError": "bild.errors",
    "custom_generate": "bild.generation.transformers",
}

__all__ = [
    "BigLittleDecoder",
    "BildError",
    "Commit",
    "GenerationOptions",
    "InputError",
    "LoadError",
    "Pair",
    "Policy",
    "Result",
    "Stats",
    "Stream",
    "VocabularyError",
    "__version__",
    "custom_generate",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: `bild --help` must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'bild' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
