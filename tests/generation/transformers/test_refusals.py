"""What cannot be done is refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EosTokenCriteria, TopKLogitsWarper

import bild
from bild import InputError, LoadError, VocabularyError
from bild.models.cache_argument import cache_argument
from tests.generation.transformers.doors import (
    EXACT,
    Avoid,
    Long,
    Recorder,
    inputs_of,
    large_of,
    new_tokens,
    plain,
    small_of,
    through,
)
from tests.networks import VOCAB_SIZE, build, word_tokenizer


def embeds(name: str) -> dict[str, Tensor]:
    return {"inputs_embeds": large_of(name).get_input_embeddings()(inputs_of(name)["input_ids"]).detach()}


def hidden(name: str) -> dict[str, Tensor]:
    inputs = inputs_of(name)
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"].clone().index_fill_(0, torch.tensor(1), 0),
    }


def read_before() -> dict[str, Any]:
    inputs = inputs_of("llama", 1)
    with torch.no_grad():
        output = large_of("llama")(inputs["input_ids"][:, :3])
    name = cache_argument(large_of("llama"))
    return inputs | {name: output[name]}


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("t5", None, {"num_beams": 2, "policy": "bild"}, "a beam search is of one model: take policy 'large'"),
    ("t5", None, {"num_beams": 2, "do_sample": True, "policy": "bild"}, "a beam search is of one model"),
    ("llama", None, {"prompt_lookup_num_tokens": 3}, "asks for assisted_generation"),
    (
        "llama",
        None,
        {"output_scores": True, "return_dict_in_generate": True},
        "output_scores is not available: rejected draft tokens",
    ),
    ("t5", None, {"output_attentions": True, "return_dict_in_generate": True}, "output_attentions is not available"),
    ("llama", None, {"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor does not go with drafts"),
    ("llama", embeds, {}, "inputs_embeds cannot be used"),
    ("t5", embeds, {}, "inputs_embeds cannot be used"),
    ("llama", lambda _: read_before(), {}, "holds tokens already, and the small model must read them too"),
    ("llama", hidden, {}, "the mask hides the whole prompt of row 1"),
    ("t5", hidden, {}, "the mask hides the whole source of row 1"),
    ("llama", None, {"position_ids": torch.arange(2, 7).expand(3, 5)}, "position_ids must count"),
    ("llama", None, {"stop_strings": ["x"]}, "stop_strings need a tokenizer"),
    ("llama", None, {"policy": "fast"}, "policy is 'fast'; allowed are bild, exact"),
    ("llama", None, {"runtime": "warp"}, "runtime is 'warp'; allowed are auto, eager, static"),
    ("llama", None, {"small": None}, "small is missing; give the cheap model, or a drafter that needs none"),
    (
        "llama",
        None,
        {"logits_processor": [TopKLogitsWarper(3), Avoid()], "do_sample": True},
        "Avoid comes after TopKLogitsWarper and would see warped scores; put it before",
    ),
    ("gpt2", None, {"input_ids": torch.full((1, 70), 5), "attention_mask": None}, "the models place at most 64"),
]


@pytest.mark.parametrize(("name", "inputs", "options", "says"), REFUSED, ids=[each[3][:40] for each in REFUSED])
def test_what_cannot_be_done_is_one_line(name, inputs, options, says):
    given = inputs_of(name) if inputs is None else inputs(name)
    given = given | {key: options[key] for key in options if key in ("input_ids", "attention_mask")}
    rest = {key: value for key, value in options.items() if key not in given}
    streamer = Recorder()
    with pytest.raises(InputError, match=says) as raised:
        through(name, given, streamer=streamer, **rest)
    assert "\n" not in str(raised.value)
    # Whoever waits for the text is told, but where there never was a door.
    assert streamer.calls == ([] if options.get("small", name) is None else ["end"])


def test_encoder_outputs_need_their_source():
    inputs = inputs_of("t5")
    encoded = large_of("t5").get_encoder()(**inputs)
    with pytest.raises(InputError, match="the small model must read the source too; give input_ids"):
        through("t5", {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]})
    assert torch.equal(through("t5", inputs | {"encoder_outputs": encoded}), plain("t5"))


def test_rows_without_an_end_need_padding():
    large = copy.deepcopy(large_of("llama"))
    large.generation_config.pad_token_id = large.generation_config.eos_token_id = None
    door = bild.custom_generate(small_of("llama"), EXACT)
    assert large.generate(**inputs_of("llama"), max_new_tokens=6, custom_generate=door).shape == (3, 11)
    with pytest.raises(InputError, match="nothing to fill them up; give pad_token_id"):
        large.generate(**inputs_of("llama"), max_new_tokens=6, custom_generate=door, stopping_criteria=[Long()])
    padless = {"stopping_criteria": [EosTokenCriteria(new_tokens("llama", 1)[2])], "pad_token_id": 3}
    with pytest.raises(InputError, match="nothing to fill them up"):
        large.generate(
            **inputs_of("llama"), max_new_tokens=6, custom_generate=door, **(padless | {"pad_token_id": None})
        )
    texts = large.generate(**inputs_of("llama"), max_new_tokens=6, custom_generate=door, **padless)
    assert torch.equal(texts, large.generate(**inputs_of("llama"), max_new_tokens=6, **padless))
    assert 3 in texts[1, 5:]


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(LoadError, match="the large model is decoder-only and the small one encoder-decoder"):
        through("llama", small=small_of("t5"))


def test_what_generate_makes_by_itself_is_passed_over_whatever_its_name(monkeypatch):
    """A new version of transformers prepares arguments under names that this one has never heard of."""
    large = large_of("llama")
    prepared = type(large)._prepare_cache_for_generation

    def prepare(self, generation_config, model_kwargs, *rest):
        model_kwargs["novelty"] = torch.ones(1)
        return prepared(self, generation_config, model_kwargs, *rest)

    expected = plain("llama")
    monkeypatch.setattr(type(large), "_prepare_cache_for_generation", prepare)
    assert torch.equal(through("llama"), expected)
    with pytest.raises(InputError, match="inputs_embeds cannot be used"):
        through("llama", embeds("llama"))


def test_padded_heads_need_the_tokenizer():
    """Qwen2.5 0.5B and 7B differ so; neither network says where its tokenizer is."""
    wide = build("llama", vocab_size=VOCAB_SIZE + 8)
    message = r"heads have 40 and 48 rows.*; give custom_generate the pair's tokenizer=…$"
    with pytest.raises(VocabularyError, match=message):
        through("llama", small=wide)
    assert through("llama", small=wide, tokenizer=word_tokenizer()).equal(plain("llama"))
