"""Source and target language of multilingual checkpoints."""

from __future__ import annotations

import threading

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer, PreTrainedTokenizerFast

from bild import BigLittleDecoder, InputError
from tests.networks import build

LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "▁", "h", "u", "n", "d", "▁hund"]
SCORED = [(name, -1.0) for name in LETTERS]
KINDS = {
    "nllb": lambda: NllbTokenizer(vocab={name: id for id, name in enumerate(LETTERS)}, merges=[], src_lang="eng_Latn"),
    "mbart50": lambda: MBart50Tokenizer(vocab=SCORED, src_lang="en_XX"),
    "mbart": lambda: MBartTokenizer(vocab=SCORED, src_lang="en_XX"),
}


def pair(tokenizer, start: int = 2, architecture: str = "bart") -> BigLittleDecoder:
    size = {"vocab_size": len(tokenizer) + 4, "decoder_start_token_id": start}
    networks = [build(architecture, seed=seed, **size) for seed in (1, 2)]
    return BigLittleDecoder(*networks, tokenizer, small_tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("kind", "german", "french"), [("nllb", "deu_Latn", "fra_Latn"), ("mbart50", "de_DE", "fr_XX")]
)
def test_the_output_begins_with_its_language(kind, german, french):
    tokenizer = KINDS[kind]()
    decoder = pair(tokenizer)
    code = tokenizer.convert_tokens_to_ids
    (result,) = decoder.generate("hund", "exact", src_lang=german, tgt_lang=french, max_new_tokens=4)
    assert result.token_ids[0] == code(french)
    wanted = decoder.large.network.generate(
        **_set(tokenizer, german)("hund", return_tensors="pt"),
        forced_bos_token_id=code(french), max_new_tokens=4, do_sample=False,
    )  # fmt: skip
    assert result.token_ids == wanted[0, 1:].tolist()
    decoder.set_languages(german, french)
    assert decoder.generate("hund", "exact", max_new_tokens=4)[0].token_ids == result.token_ids


def _set(tokenizer, code):
    tokenizer.src_lang = code
    return tokenizer


def test_the_tokenizer_is_left_in_its_language():
    tokenizer = KINDS["nllb"]()
    decoder, code = pair(tokenizer), tokenizer.convert_tokens_to_ids
    german = decoder.prompter(src_lang="deu_Latn").encode("hund")
    assert german[0] == code("deu_Latn") and tokenizer.src_lang == "eng_Latn"
    assert decoder.prompter().encode("hund") == tokenizer("hund").input_ids == [code("eng_Latn"), *german[1:]]


def test_threads_do_not_take_each_others_language():
    tokenizer = KINDS["nllb"]()
    decoder, seen = pair(tokenizer), []
    languages = ["deu_Latn", "fra_Latn", "spa_Latn", None]

    def encode(code):
        prompter = decoder.prompter(src_lang=code)
        seen.extend((code, prompter.encode("hund")[0]) for _ in range(40))

    threads = [threading.Thread(target=encode, args=(code,)) for code in languages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    named = {code: tokenizer.convert_tokens_to_ids(code or "eng_Latn") for code in languages}
    assert len(seen) == 160 and all(id == named[code] for code, id in seen)


def test_a_checkpoint_that_starts_from_the_language_does_so():
    tokenizer = KINDS["mbart"]()
    code = tokenizer.convert_tokens_to_ids
    decoder = pair(tokenizer, start=code("ro_RO"))
    _, asked = decoder.asked({"tgt_lang": "fr_XX"})
    assert (asked.decoder_start_token_id, asked.forced_bos_token_id) == (code("fr_XX"), None)
    assert decoder.jobs("hund", tgt_lang="fr_XX")[0].request.prompt == [code("fr_XX")]


def test_codes_between_underscores_and_codes_before_the_text():
    names = ["<unk>", "</s>", ">>fra<<", "<2de>", "hund", "fr"]
    words = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", additional_special_tokens=["__fr__"]
    )
    decoder = pair(tokenizer)
    assert decoder.prompter(tgt_lang="fra").encode("hund") == [2, 4]
    assert decoder.prompter(tgt_lang="de", prefix="hund ").encode("hund") == [3, 4, 4]
    _, asked = decoder.asked({"tgt_lang": "fr"})
    assert asked.forced_bos_token_id == tokenizer.convert_tokens_to_ids("__fr__") != 5
    with pytest.raises(InputError, match="src_lang is 'fr', but the checkpoint's tokenizer knows no source languages"):
        decoder.generate("hund", src_lang="fr")


@pytest.mark.parametrize("option", ["src_lang", "tgt_lang"])
def test_a_language_the_checkpoint_lacks_is_refused_with_those_like_it(option):
    decoder = pair(KINDS["nllb"]())
    with pytest.raises(InputError, match=rf"{option} is 'fra_Latin', which is no language .* did you mean fra_Latn"):
        decoder.generate("hund", **{option: "fra_Latin"})
    with pytest.raises(InputError, match=f"{option} is '<pad>', which is no language"):
        decoder.set_languages(**{"src_lang": None, "tgt_lang": None} | {option: "<pad>"})


def test_a_decoder_only_model_has_no_target_language():
    tokenizer = KINDS["nllb"]()
    decoder = pair(tokenizer, architecture="gpt2")
    with pytest.raises(InputError, match="tgt_lang is 'fra_Latn', which is no language"):
        decoder.generate([[5]], tgt_lang="fra_Latn")
