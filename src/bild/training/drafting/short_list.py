"""Which tokens a drafter may write: those the large model writes most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from bild.training.drafting.shape import special_ids


def most_frequent(
    texts: Iterable[Sequence[int]], size: int, tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Iterable[int]
) -> tuple[list[int], float]:
    """The short list, ascending, and the share of the texts' tokens that it holds.

    Special tokens and those that end a text are always in it. Where the texts have fewer different tokens than it has
    places, the smallest ids fill it up: in vocabularies made by merging, the earliest merges are the most frequent.

    Args:
        texts: token ids the large model wrote.
        size: tokens of the list.
        tokenizer: whose special tokens are kept.
        vocab_size: rows of the head.
        ends: tokens that end a text.
    """
    counts = Counter(id for text in texts for id in text if id < vocab_size)
    always = special_ids(tokenizer, vocab_size) | {id for id in ends if 0 <= id < vocab_size}
    ranked = sorted(counts, key=lambda id: (-counts[id], id))
    kept = dict.fromkeys([*sorted(always), *ranked, *range(vocab_size)])
    ids = sorted(list(kept)[:size])
    total = counts.total()
    return ids, sum(counts[id] for id in ids) / total if total else 0.0
