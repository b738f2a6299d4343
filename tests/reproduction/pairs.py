"""Tiny pairs by name, as a command would load them, and texts they can read."""

from __future__ import annotations

from functools import cache
from random import Random

from bild import BigLittleDecoder
from bild.evaluation import Example, Setup
from bild.reproduction import Inputs
from tests.models.test_generation_agrees import large_of, small_of
from tests.networks import word_tokenizer

LONGEST = 8


@cache
def load_named(large: str, small: str) -> BigLittleDecoder:
    """``large`` with ``unaligned`` (another network), ``aligned`` (much like it) or its own first layers."""
    kinds = {"unaligned": "other", "aligned": "noisy", "large": "same"}
    network = small if small.startswith("exit:") else small_of("t5", 1, kinds[small])
    return BigLittleDecoder(large_of("t5", 1), network, word_tokenizer())


def load(*, large: str, small: str, **options: object) -> BigLittleDecoder:
    return load_named(large, small)


@cache
def examples(count: int, seed: int = 0) -> tuple[Example, ...]:
    """Texts whose reference is what the large model writes: it scores 100, all others less."""
    words, rng = list(word_tokenizer().get_vocab()), Random(seed)
    sources = [" ".join(rng.choice(words[10:]) for _ in range(rng.randint(2, 6))) for _ in range(count)]
    texts = load_named("large", "aligned").generate(sources, "large", max_new_tokens=LONGEST)
    # A reference that is empty would be none.
    return tuple(
        Example(str(i), source, (result.text or "w2",))
        for i, (source, result) in enumerate(zip(sources, texts, strict=True))
    )


def inputs(sets: int = 1, **options: object) -> Inputs:
    """Everything an item may ask for."""
    given = {
        "setup": Setup(large="large", small="unaligned", max_new_tokens=LONGEST),
        "test": {f"set {at}": examples(5, at) for at in range(sets)},
        "dev": {f"set {at}": examples(4, 10 + at) for at in range(sets)},
        "aligned": "aligned",
        "early_exit": "large:1",
        "calm": "large",
        "seeds": (1, 2),
        "resamples": 20,
    }
    return Inputs(**(given | options))
