"""Tiny pairs by name, as a command would load them, and texts they can read."""

from __future__ import annotations

from functools import cache
from random import Random

from bild import BigLittleDecoder
from bild.evaluation import Example, Setup
from bild.reproduction import Inputs
from tests.models.test_generation_agrees import large_of
from tests.networks import perturbed, word_tokenizer

LONGEST = 8


@cache
def load_named(large: str, small: str) -> BigLittleDecoder:
    """``large`` with ``unaligned`` (somewhat like it), ``aligned`` (more so) or its own first layers."""
    whole = large_of("t5", 1)
    noise = {"unaligned": 0.3, "aligned": 0.15, "large": 0.0}
    network = small if small.startswith("exit:") else perturbed(whole, noise[small])
    return BigLittleDecoder(whole, network, word_tokenizer())


def load(*, large: str, small: str, **options: object) -> BigLittleDecoder:
    return load_named(large, small)


@cache
def examples(count: int, seed: int = 0) -> tuple[Example, ...]:
    """Texts whose reference is what the large model writes: it scores 100, all others less."""
    words, rng = sorted(word_tokenizer().get_vocab()), Random(seed)
    sources = [" ".join(rng.choice(words[10:]) for _ in range(rng.randint(2, 6))) for _ in range(3 * count)]
    texts = load_named("large", "aligned").generate(sources, "large", max_new_tokens=LONGEST)
    # An empty reference would be none.
    pairs = [(source, result.text) for source, result in zip(sources, texts, strict=True) if result.text][:count]
    assert len(pairs) == count
    return tuple(Example(str(at), source, (text,)) for at, (source, text) in enumerate(pairs))


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
