"""Chat templates, task prefixes and the shapes an input may have."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bild import BigLittleDecoder, InputError
from bild.generation.prompts import as_list
from tests.networks import build

WORDS = ["<pad>", "</s>", "<unk>", "user:", "system:", "assistant:", "hello", "world", "briefly"]


@pytest.fixture(scope="module")
def chat() -> BigLittleDecoder:
    """A decoder-only pair whose tokenizer has a chat template."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    networks = (build("llama", seed=seed, vocab_size=len(WORDS)) for seed in (1, 2))
    return BigLittleDecoder(*networks, wrapped, small_tokenizer=wrapped)


def words(decoder: BigLittleDecoder, item, **options) -> list[str]:
    return [WORDS[id] for id in decoder.prompter(**options).encode(item)]


def test_a_text_is_a_users_turn_where_there_is_a_template(chat):
    assert words(chat, "hello world") == ["user:", "hello", "world", "assistant:"]
    assert words(chat, "hello", prefix="world ") == ["user:", "world", "hello", "assistant:"]
    system = ["system:", "briefly", "user:", "hello", "assistant:"]
    assert words(chat, "hello", system="briefly") == system
    assert words(chat, [{"role": "system", "content": "briefly"}, {"role": "user", "content": "hello"}]) == system
    assert words(chat, "hello world", chat=False) == ["hello", "world"]


def test_conversations_are_decoded_one_or_many(chat):
    turn = [{"role": "user", "content": "hello"}]
    one, many = chat.generate(turn, max_new_tokens=3), chat.generate([turn, "world"], max_new_tokens=3)
    assert len(one) == 1 and [r.token_ids for r in many[:1]] == [one[0].token_ids] and len(many) == 2
    assert chat.generate("hello", max_new_tokens=3)[0].token_ids == one[0].token_ids


def test_as_list():
    assert as_list("a") == (["a"], True) and as_list(("a", "b")) == (["a", "b"], False)
    assert as_list([5, 6]) == ([[5, 6]], True) and as_list([[5], [6, 7]]) == ([[5], [6, 7]], False)
    padded, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    assert as_list(padded, mask) == ([[5, 6], [7]], False)
    assert as_list({"input_ids": padded, "attention_mask": mask}) == ([[5, 6], [7]], False)
    assert as_list(torch.tensor([5, 6])) == ([[5, 6]], True)
    with pytest.raises(InputError, match="cannot decode a float"):
        as_list(1.5)
