"""Whether two checkpoints share a vocabulary: by content, not by size."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.errors import LoadError, VocabularyError

SHOWN = 3


def check_shared_vocabulary(
    large: PreTrainedTokenizerBase | None, small: PreTrainedTokenizerBase | None, large_size: int, small_size: int
) -> int:
    """The number of token ids both models know.

    Heads may be padded to different sizes (Qwen, T5); ids beyond the shorter head are never written.

    Args:
        large: tokenizer of the large model, None if unknown.
        small: tokenizer of the small model, None if unknown.
        large_size: rows of its language-model head.
        small_size: likewise.

    Raises:
        VocabularyError: an id stands for different pieces (the first ones are named), or one model
            has pieces the other cannot read.
    """
    if large is None or small is None:
        if large_size != small_size:
            raise VocabularyError(
                f"the models' heads have {large_size} and {small_size} rows and there are not two tokenizers to "
                "compare; add the tokenizer to both folders"
            )
        return large_size
    vocabularies = large.get_vocab(), small.get_vocab()
    # Nearly every pair ends here: a quarter of a million pieces are not turned around and sorted for nothing.
    if vocabularies[0] == vocabularies[1]:
        shared = min(large_size, small_size)
        # What one head scores beyond the other's rows must be padding.
        last = max(vocabularies[0].values(), default=0)
        if shared <= last < max(large_size, small_size):
            piece = next(piece for piece, id in vocabularies[0].items() if id == last)
            raise VocabularyError(
                f"the heads have {large_size} (large) and {small_size} (small) rows, and the tokenizer has a piece "
                f"with id {last} ({piece!r}), which one of them could never write; use checkpoints whose heads know "
                "every piece"
            )
        return shared
    of_large, of_small = ({id: piece for piece, id in pieces.items()} for pieces in vocabularies)
    differing = sorted(id for id in of_large.keys() & of_small.keys() if of_large[id] != of_small[id])
    if differing:
        first = "; ".join(f"{id}: {of_large[id]!r} / {of_small[id]!r}" for id in differing[:SHOWN])
        raise VocabularyError(
            f"the vocabularies differ in {len(differing)} ids, the first are (large / small) {first}; "
            "use two checkpoints with the same tokenizer"
        )
    shared = min(large_size, small_size)
    beyond = sorted(id for id in of_large.keys() ^ of_small.keys() if id >= shared)
    if beyond:
        pieces = of_large if beyond[0] in of_large else of_small
        raise VocabularyError(
            f"the vocabularies have {len(of_large)} (large) and {len(of_small)} (small) pieces; id {beyond[0]} "
            f"({pieces[beyond[0]]!r}) exists in one only; use two checkpoints with the same tokenizer"
        )
    return shared


def head_size(network: PreTrainedModel) -> int:
    """Rows of a network's language-model head; of a shortened one, those it had.

    Raises:
        LoadError: it has none.
    """
    head = network.get_output_embeddings()
    if head is None:
        raise LoadError(f"{type(network).__name__} has no language-model head; use a model that generates text")
    # A short list's head (bild.models.short_list) says how many there were.
    size = getattr(head, "vocab_size", None)
    return int(head.weight.shape[0] if size is None else size)
