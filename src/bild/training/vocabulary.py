"""A vocabulary made from the training texts, shared by sources and targets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bild.errors import InputError, one_line
from bild.models import load_tokenizer
from bild.training.checkpoint import TOKENIZER, writing

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SMALLEST = 16


def make_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A unigram tokenizer as sentencepiece makes them; every text ends with ``</s>``.

    Args:
        texts: all that is trained on.
        size: most pieces, 16…; fewer where the texts do not hold as many.

    Raises:
        InputError: a size out of range, or texts that no pieces can be learnt from.
    """
    if size < SMALLEST:
        raise InputError(f"vocab_size is {size}; allowed is {SMALLEST} or more")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[PAD, END, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"no vocabulary can be made from these texts ({one_line(error)}); give more of them") from None
    end = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[end])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def kept_tokenizer(folder: Path, texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """As :func:`make_tokenizer`, made once and kept in a folder."""
    place, partial = folder / TOKENIZER, folder / f"{TOKENIZER}.partial"
    if not place.exists():
        made = make_tokenizer(texts, size)
        with writing(folder):
            made.save_pretrained(partial)
            partial.rename(place)
    kept = load_tokenizer(place)
    assert kept is not None
    return kept
