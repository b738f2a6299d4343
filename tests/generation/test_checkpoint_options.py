"""What a checkpoint's generation config asks for is applied as in transformers, refused, or passed over by name."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

from bild import BigLittleDecoder, GenerationOptions, InputError
from bild.generation import checkpoint_options
from bild.generation.checkpoint_options import PASSED_OVER, REFUSED, WITHOUT_EFFECT
from tests.networks import PAD, build

PROMPT = [[5, 6, 7, 8]]
APPLIED = [name for name in GenerationOptions.__dataclass_fields__ if name not in ("do_sample", "seed")]


@pytest.fixture(autouse=True)
def _say_again():
    checkpoint_options._warn.cache_clear()


def pair(**config) -> BigLittleDecoder:
    large, small = build("gpt2", seed=1), build("gpt2", seed=2)
    for name, value in config.items():
        setattr(large.generation_config, name, value)
    return BigLittleDecoder(large, small)


def transformers_text(decoder: BigLittleDecoder, **options) -> list[int]:
    written = decoder.large.network.generate(torch.tensor(PROMPT), do_sample=False, **options)
    return written[0, len(PROMPT[0]) :].tolist()


def test_every_field_of_transformers_is_decided():
    fields = set(vars(GenerationConfig()))
    decided = [*APPLIED, "do_sample", *REFUSED, *PASSED_OVER, *WITHOUT_EFFECT]
    assert not fields - set(decided), "transformers has new fields: decide what they mean for the loop"
    assert len(decided) == len(set(decided)), "a field is decided twice"


@pytest.fixture(scope="module")
def plain() -> list[int]:
    return transformers_text(pair(eos_token_id=None), max_new_tokens=12)


NAMED_END = "exponential_decay_length_penalty"
LONGEST = 24
CHANGES = {
    "sequence_bias": lambda plain: [[[plain[0]], -100.0]],
    "bad_words_ids": lambda plain: [[plain[1]]],
    "suppress_tokens": lambda plain: [plain[2]],
    "begin_suppress_tokens": lambda plain: [plain[0]],
    "forced_bos_token_id": lambda plain: 9,
    "forced_eos_token_id": lambda plain: 9,
    "repetition_penalty": lambda plain: 5.0,
    "no_repeat_ngram_size": lambda plain: 1,
    "exponential_decay_length_penalty": lambda plain: (2, 3.0),
    "max_new_tokens": lambda plain: 3,
    "eos_token_id": lambda plain: plain[3],
    "remove_invalid_values": lambda plain: True,
    "min_new_tokens": lambda plain: 9,
    "min_length": lambda plain: 12,
    "max_length": lambda plain: 9,
}


@pytest.mark.parametrize("place", ["checkpoint", "call"])
@pytest.mark.parametrize("name", CHANGES)
def test_as_transformers_applies_it(plain, name, place):
    value = CHANGES[name](plain)
    ends = {"eos_token_id": value, "min_new_tokens": plain[5], "min_length": plain[5], NAMED_END: plain[5]}.get(name)
    decoder = pair(eos_token_id=ends)
    length = {} if name in ("max_new_tokens", "max_length") else {"max_new_tokens": LONGEST}
    option = {} if name == "eos_token_id" else {name: value}
    if place == "checkpoint":
        for key, each in option.items():
            setattr(decoder.generation_config, key, each)
        option = {}
    wanted = transformers_text(decoder, **length, **option)
    for policy in ("exact", "large"):
        assert decoder.generate(PROMPT, policy, **length, **option)[0].token_ids == wanted
    # No score is invalid here, and a forced first token follows a prompt of one token only.
    same = name in ("remove_invalid_values", "forced_bos_token_id")
    usual = transformers_text(pair(eos_token_id=None if name == "eos_token_id" else ends), max_new_tokens=LONGEST)
    assert (wanted == usual) == same


def test_source_penalties_of_a_decoder_look_at_its_prompt():
    decoder = pair(eos_token_id=None)
    for option in ({"encoder_repetition_penalty": 4.0}, {"encoder_no_repeat_ngram_size": 1}):
        wanted = transformers_text(decoder, max_new_tokens=LONGEST, **option)
        assert decoder.generate(PROMPT, "exact", max_new_tokens=LONGEST, **option)[0].token_ids == wanted
        assert wanted != transformers_text(decoder, max_new_tokens=LONGEST)


def test_source_penalties_of_an_encoder_decoder(bundled):
    text = "Ein Hund läuft im Park."
    plain = bundled.generate(text, "large")[0].token_ids
    ids = bundled.tokenizer(text, return_tensors="pt").input_ids
    for option in ({"encoder_repetition_penalty": 8.0}, {"encoder_no_repeat_ngram_size": 1}):
        wanted = bundled.large.network.generate(ids, do_sample=False, **option)[0, 1:].tolist()
        assert bundled.generate(text, "exact", **option)[0].token_ids == wanted
    assert bundled.generate(text, "exact", encoder_repetition_penalty=8.0)[0].token_ids != plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_healing", True),
        ("guidance_scale", 1.5),
        ("watermarking_config", WatermarkingConfig()),
        ("constraints", ["x"]),
        ("force_words_ids", [[5]]),
        ("max_time", 1.0),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"the checkpoint's generation config sets {name}, .*{name} to None") as raised:
        pair(**{name: value}).generate(PROMPT)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=f"^{name} is not available"):
        pair().generate(PROMPT, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 1.0), ("token_healing", False), ("num_beams", 1)])
def test_a_value_that_asks_for_nothing_is_taken(name, value, caplog):
    # A text of padding makes transformers warn, once in a process.
    options = {"max_new_tokens": 2, "suppress_tokens": [PAD]}
    assert pair(**{name: value}).generate(PROMPT, **options)[0].token_ids and not caplog.text


@pytest.mark.parametrize(
    ("name", "value"), [("penalty_alpha", 0.6), ("dola_layers", "low"), ("num_return_sequences", 2)]
)
def test_what_is_recommended_and_passed_over_is_named_once(name, value, caplog):
    instead = "texts are greedy, drawn, or found by beams"
    if name == "num_return_sequences":
        instead = "one text is written for each input, unless generate is asked for more"
    decoder = pair(**{name: value})
    with caplog.at_level(logging.WARNING, "bild"):
        for _ in range(3):
            decoder.generate(PROMPT, max_new_tokens=2)
    assert caplog.text.count(f"asks for {name}={value}") == 1
    with pytest.raises(InputError, match=f"{name} is not available here: {instead}; leave it out"):
        decoder.stream(PROMPT, **{name: value})


def test_a_field_of_a_later_transformers_is_named(monkeypatch, caplog):
    monkeypatch.delitem(PASSED_OVER, "dola_layers")
    with caplog.at_level(logging.WARNING, "bild"):
        pair(dola_layers="low").generate(PROMPT, max_new_tokens=2)
    assert "sets dola_layers, which is not known here" in caplog.text


@pytest.mark.parametrize("longest", [6, 12, 20])
def test_max_length_counts_the_prompt_as_in_transformers(longest):
    decoder = pair(max_length=longest, eos_token_id=None)
    wanted = transformers_text(decoder)
    assert len(wanted) == longest - len(PROMPT[0])
    assert decoder.generate(PROMPT, "exact")[0].token_ids == wanted
    assert len(pair(eos_token_id=None).generate(PROMPT, "exact", max_length=longest)[0].token_ids) == len(wanted)


def test_a_short_max_length_of_an_encoder_decoder():
    large, small = build("bart", seed=1), build("bart", seed=2)
    large.generation_config.max_length, large.generation_config.eos_token_id = 12, None
    wanted = large.generate(torch.tensor(PROMPT), do_sample=False)[0, 1:].tolist()
    written = BigLittleDecoder(large, small).generate(PROMPT, "exact")[0].token_ids
    assert len(written) == 11 and written == wanted


def test_a_call_outweighs_the_checkpoint_and_the_default_is_256():
    config = GenerationConfig(max_new_tokens=9, max_length=30)
    assert GenerationOptions.over(config, {}).new_tokens(4) == 9
    assert GenerationOptions.over(config, {"max_length": 20}).new_tokens(4) == 16
    assert GenerationOptions.over(GenerationConfig(max_length=30), {"max_new_tokens": 7}).new_tokens(4) == 7
    assert GenerationOptions.over(GenerationConfig(), {}).new_tokens(4) == 256
    assert GenerationOptions.over(GenerationConfig(max_length=20), {}).new_tokens(4) == 16
    with pytest.raises(InputError, match="max_length is 4, and the prompt alone has 4 tokens; give max_new_tokens"):
        pair().generate(PROMPT, max_length=4)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"temperature": 0.7}, "temperature shapes draws, and this call draws nothing; set do_sample"),
        ({"top_p": 0.9, "do_sample": False}, "top_p shapes draws"),
        ({"seed": 3}, "seed shapes draws"),
        ({"top_k": 5}, "top_k shapes draws"),
        ({"typical_p": 0.5}, "typical_p shapes draws"),
        ({"temperature": 0}, "temperature is 0; allowed is more than 0"),
        ({"stop_strings": ""}, "stop_strings are ''; allowed are texts of at least one letter"),
        ({"stop_strings": ["a", ""]}, r"stop_strings are \['a', ''\]"),
        ({"stop_strings": [5]}, r"stop_strings are \[5\]"),
        ({"stop_strings": 5}, "stop_strings are 5; allowed are texts"),
        ({"eos_token_id": "x"}, "eos_token_id names 'x'; allowed are whole numbers"),
        ({"eos_token_id": [1, 2.5]}, "eos_token_id names 2.5"),
        ({"sequence_bias": [[["x"], 1.0]]}, "sequence_bias names token id 'x'; allowed are whole numbers, 0 to 39"),
        ({"sequence_bias": [5]}, r"sequence_bias is \[5\]; allowed are pairs"),
        ({"bad_words_ids": [[5, 99]]}, "bad_words_ids names token id 99"),
        ({"forced_bos_token_id": 40}, "forced_bos_token_id names token id 40"),
        ({"forced_eos_token_id": [1, -1]}, "forced_eos_token_id names token id -1"),
        ({"exponential_decay_length_penalty": 5}, "an option of the scores cannot be used"),
        ({"do_sample": True, "top_k": 2.5}, "top_k is 2.5; allowed is 0"),
        ({"do_sample": True, "temperature": "hot"}, "another kind than allowed"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; allowed is 1 or more, a whole number"),
        ({"prefix": b"a"}, "prefix is bytes"),
        ({"chat_template_kwargs": ["a"]}, "chat_template_kwargs is a list; give a dict"),
        ({"max_length": 9, "max_new_tokens": 5}, "max_new_tokens and max_length are both given"),
        ({"max_length": 0}, "max_length is 0; allowed is 1 or more"),
        ({"min_new_tokens": 7, "max_new_tokens": 6}, "min_new_tokens is 7 and max_new_tokens 6; allowed is at most"),
        ({"min_new_tokens": "5"}, "min_new_tokens is '5'; allowed is 0 or more"),
        ({"decoder_start_token_id": [1, 2]}, r"decoder_start_token_id is \[1, 2\]; allowed is one token id"),
        ({"decoder_start_token_id": 200}, "decoder_start_token_id names token id 200"),
    ],
)
def test_options_that_would_do_nothing_or_cannot_be_used(option, says):
    with pytest.raises(InputError, match=says) as raised:
        pair().generate(PROMPT, **option)
    assert "\n" not in str(raised.value)


def test_values_that_leave_draws_as_they_are_pass_and_a_checkpoints_own_do_not_matter():
    decoder = pair(temperature=0.0, top_p=0.0)
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}
    assert decoder.generate(PROMPT, max_new_tokens=3, **neutral)[0].token_ids
    with pytest.raises(InputError, match="temperature is 0"):
        decoder.generate(PROMPT, do_sample=True)


@pytest.mark.parametrize(
    "sharp", [{"top_h": 1e-6}, {"typical_p": 1e-6}, {"epsilon_cutoff": 0.999}, {"eta_cutoff": 0.999}]
)
def test_every_warper_of_transformers_shapes_draws(sharp):
    decoder, loose = pair(eos_token_id=None), {"do_sample": True, "seed": 3, "max_new_tokens": 12, "temperature": 2.0}
    drawn = decoder.generate(PROMPT, "large", **loose)[0].token_ids
    shaped = decoder.generate(PROMPT, "large", **loose, **sharp)[0].token_ids
    assert shaped != drawn
    if sharp.keys() & {"top_h", "epsilon_cutoff"}:  # these leave the likeliest token alone
        assert shaped == decoder.generate(PROMPT, "large", max_new_tokens=12)[0].token_ids
    for name, value in sharp.items():
        setattr(decoder.generation_config, name, value)
    assert decoder.generate(PROMPT, "large", **loose)[0].token_ids == shaped
