"""Small tokenizers of every kind that decodes differently."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["I", "do", "n't", "know", ".", ",", "why", "'", "'s", "x", "!"]


def _wrap(tokenizer: Tokenizer, **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def bytewise() -> PreTrainedTokenizerFast:
    """Byte-level BPE, one token a byte, as GPT-2, Llama 3 and Qwen do with rare characters; ends in a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, eos_token="<|im_end|>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: words with a metaspace, anything else as bytes that are decoded run by run."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁日", "s", "</s>"]
    tokenizer = Tokenizer(
        models.BPE({name: id for id, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer, unk_token="<unk>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """As T5's and mBART's: pieces that begin with a metaspace."""
    names = ["</s>", "<unk>", "▁", "▁Hund", "e", "▁über", "!", "。", "▁▁", "s"]
    tokenizer = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(tokenizer, unk_token="<unk>", eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: pieces inside a word begin with ##, and decoding cleans up twice."""
    names = ["[UNK]", "[SEP]", "foot", "##ball", "##s", ".", ",", "'", "s", "n't", "don"]
    tokenizer = Tokenizer(models.WordPiece({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return _wrap(tokenizer, unk_token="[UNK]", sep_token="[SEP]", clean_up_tokenization_spaces=True)


def cleaning() -> PreTrainedTokenizerFast:
    """Joins "word ." to "word." when it decodes, and has no decoder of its own."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="I"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer, clean_up_tokenization_spaces=True)


KINDS = {each.__name__: each for each in (bytewise, byte_fallback, unigram, wordpiece, cleaning)}
