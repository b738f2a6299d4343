"""Chat templates, task prefixes and the shapes an input may have."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bild import BigLittleDecoder, InputError
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


@pytest.mark.parametrize("options", [{}, {"chat": False}, {"system": "briefly"}, {"prefix": "world ", "chat": False}])
def test_texts_of_a_list_are_encoded_as_one_by_one(chat, options):
    prompter = chat.prompter(**options)
    for items in (["hello", "world briefly", "hello world"], ["world"]):
        expected = [prompter.encode(item) for item in items]
        assert prompter.encode_list(items) == (None if "system" in options else expected)
    assert prompter.encode_list(["hello", [6, 7]]) is None


def test_what_an_iterator_raises_is_not_about_an_input(chat):
    def inputs():
        yield "hello"
        raise InputError("no more lines")

    with pytest.raises(InputError, match=r"^no more lines$"):
        list(chat.generate_each(inputs(), max_new_tokens=3))


def test_texts_of_a_list_are_read_by_one_call_of_the_tokenizer(chat, monkeypatch):
    calls, call = [], type(chat.tokenizer).__call__

    def noted(self, texts):
        calls.append(texts)
        return call(self, texts)

    monkeypatch.setattr(type(chat.tokenizer), "__call__", noted)
    texts = ["hello world", "briefly", "world"]
    results = chat.generate(texts, max_new_tokens=3, chat=False)
    assert len(results) == 3 and calls == [texts]


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (["hello", "  "], {}, r"input 1 \(counted from 0\): the text is empty"),
        (["hello", "wo\ud800rld"], {}, r"input 1 \(counted from 0\): the text holds half a character \(U\+D800 at 2\)"),
        (["hello", "world"], {"system": "briefly"}, r"input 0 \(counted from 0\): system needs a chat"),
    ],
)
def test_what_cannot_be_encoded_is_named_in_a_list(chat, items, options, message):
    with pytest.raises(InputError, match=message):
        chat.generate(items, max_new_tokens=3, chat=False, **options)


def test_conversations_are_decoded_one_or_many(chat):
    turn = [{"role": "user", "content": "hello"}]
    one, many = chat.generate(turn, max_new_tokens=3), chat.generate([turn, "world"], max_new_tokens=3)
    assert len(one) == 1 and [r.token_ids for r in many[:1]] == [one[0].token_ids] and len(many) == 2
    assert chat.generate("hello", max_new_tokens=3)[0].token_ids == one[0].token_ids


TEMPLATES = {
    "no system turn": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}",
    "an undefined name": "{{ messages[0].name.upper() }}",
    "no syntax": "{% if %}",
    "a wrong filter": "{{ messages | nosuchfilter }}",
    "two turns": "{{ messages[5].content }}{{ 1 / 0 }}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_raises_is_one_line(chat, template, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "chat_template", TEMPLATES[template])
    with pytest.raises(InputError, match=r"the chat template refuses these turns \(system, user\): \w+: ") as raised:
        chat.generate("hello", system="briefly", max_new_tokens=2)
    assert "\n" not in str(raised.value)


def test_the_template_is_told_what_the_call_says(chat, monkeypatch):
    quiet = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %} briefly{% endif %}"
    monkeypatch.setattr(chat.tokenizer, "chat_template", quiet)
    assert words(chat, "hello") == ["hello"]
    assert words(chat, "hello", chat_template_kwargs={"enable_thinking": False}) == ["hello", "briefly"]
    (result,) = chat.generate("hello", "exact", max_new_tokens=2, chat_template_kwargs={"enable_thinking": False})
    assert result.token_ids == chat.generate([[6, 8]], "exact", max_new_tokens=2)[0].token_ids


@pytest.mark.parametrize(
    ("item", "options", "says"),
    [
        ("hello", {"chat": False, "system": "briefly"}, "system needs a chat"),
        ("hello", {"chat": False, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs needs a chat"),
        ("hello", {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs hold tokenize"),
        ([{"role": "system", "content": "a"}], {"system": "b"}, "the conversation has a system turn of its own"),
        ([{"role": "user", "content": "a \ud800"}], {}, "half a character"),
        ([6, 8], {"prefix": "a "}, "prefix goes with texts, and this input is token ids"),
        ([6, 8], {"chat": True}, "chat goes with texts"),
        ([6, 8], {"system": "briefly"}, "system goes with texts"),
    ],
)
def test_chat_options_that_cannot_be_used(chat, item, options, says):
    with pytest.raises(InputError, match=says):
        chat.prompter(**options).encode(item)


def test_a_system_message_goes_before_a_conversation(chat):
    turns = [{"role": "user", "content": "hello"}]
    assert words(chat, turns, system="briefly") == words(chat, "hello", system="briefly")
