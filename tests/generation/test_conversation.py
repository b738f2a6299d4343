"""A conversation: what is in view, what is forgotten, what a stopped answer leaves."""

from __future__ import annotations

import pytest
import torch

from bild import BigLittleDecoder
from bild.errors import InputError, TooLongError
from bild.generation import Conversation
from bild.models.eager.scorer import EagerScorer
from tests.evaluation.chats import ASSISTANT, USER, chat_pair
from tests.networks import EOS, build, word_tokenizer


def talk(**options) -> Conversation:
    return Conversation(chat_pair(), **{"max_new_tokens": 6} | options)


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def test_every_turn_is_answered_with_all_before_it_in_view():
    conversation, pair = talk(), chat_pair()
    first = "".join(piece for piece, _ in conversation.say("w7 w8"))
    (expected,) = pair.generate([[USER, 7, 8, ASSISTANT]], "large", max_new_tokens=6)
    assert first == expected.text and conversation.result.token_ids == expected.token_ids
    said = list(conversation.say("w9"))
    prompt = [USER, 7, 8, ASSISTANT, *ids(first), EOS, USER, 9, ASSISTANT]
    (expected,) = pair.generate([prompt], "exact", max_new_tokens=6)
    assert "".join(piece for piece, _ in said) == expected.text and conversation.stats == expected.stats
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    conversation.clear()
    assert conversation.result is None and conversation.stats is None
    assert "".join(piece for piece, _ in conversation.say("w7 w8")) == first


def test_pieces_say_who_wrote_them():
    conversation = talk(max_new_tokens=20)
    said = list(conversation.say("w7 w8 w30"))
    written = [(text.strip(), writer) for text, writer in said]
    expected = [
        (token["text"].strip(), token["writer"])
        for token in conversation.result.tokens(chat_pair().tokenizer)
        if token["id"] > EOS
    ]
    flat = [(word, writer) for text, writer in written for word in text.split()]
    assert flat == expected and {writer for _, writer in flat} == {"small", "large"}


def test_an_answer_that_is_stopped_stays_as_far_as_it_came():
    conversation = talk(max_new_tokens=20)
    answer = conversation.say("w7 w8")
    piece, _ = next(answer)
    answer.close()
    assert conversation.turns[1] == {"role": "assistant", "content": piece} and conversation.result is None
    assert 0 < conversation.stats.num_tokens < 20
    # Stopped before a word came: as if nothing had been said.
    answer = conversation.say("w9")
    answer.close()
    assert len(conversation.turns) == 2
    list(conversation.say("w9"))
    assert len(conversation.turns) == 4


def test_after_a_pass_that_was_interrupted_nothing_is_gone_on_from(monkeypatch):
    conversation, expected = talk(max_new_tokens=20), talk(max_new_tokens=20)
    for each in (conversation, expected):
        list(each.say("w7 w8"))
    extend = EagerScorer.summarize

    def interrupted(self, *arguments, **options):
        extend(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EagerScorer, "summarize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(conversation.say("w9"))
    assert list(conversation.say("w9 w12")) == list(expected.say("w9 w12"))


def test_the_oldest_turns_make_room():
    """64 positions, a quarter of them for an answer."""
    conversation = talk(max_new_tokens=30)
    texts = [" ".join([f"w{n}"] * 8) for n in range(10, 16)]
    for text in texts:
        list(conversation.say(text))
        prompt = chat_pair().prompter().encode(conversation.turns[:-1])
        assert len(prompt) + 16 <= 64 and conversation.turns[-2]["content"] == text
    assert conversation.dropped > 0
    assert conversation.turns[0]["role"] == "user"
    assert conversation.dropped + len(conversation.turns) // 2 == len(texts)


def test_who_drafts_may_be_said():
    conversation = talk(max_new_tokens=20, drafter="ngram", lossless=True)
    writers = {writer for _, writer in conversation.say("w7 w8 w30")}
    assert writers <= {"ngram", "large"} and conversation.stats.num_small_steps == 0


def test_a_turn_that_is_too_long_by_itself_changes_nothing():
    conversation = talk()
    list(conversation.say("w7"))
    before = list(conversation.turns)
    with pytest.raises(TooLongError, match="the models place at most 64"):
        list(conversation.say(" ".join(["w9"] * 70)))
    assert conversation.turns == before and conversation.dropped == 0


def test_seeds_draw_other_numbers_for_every_answer():
    options = {"do_sample": True, "temperature": 3.0, "seed": 5, "max_new_tokens": 12}
    one, again = talk(**options), talk(**options)
    first = [list(each.say("w7")) for each in (one, again)]
    assert first[0] == first[1]
    one.clear()
    assert list(one.say("w7")) != first[0]


@pytest.mark.parametrize(
    ("pair", "options", "says"),
    [
        (lambda: chat_pair(template=None), {}, "the checkpoint has no chat template, so it holds no conversation"),
        (lambda: BigLittleDecoder(build("t5", dtype=torch.float32), "exit:1", word_tokenizer()), {}, "encoder-decoder"),
        (chat_pair, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (chat_pair, {"policy": "warp"}, "warp"),
        (chat_pair, {"temperature": 2.0}, "temperature shapes draws"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_turn(pair, options, says):
    with pytest.raises(InputError, match=says):
        Conversation(pair(), **options)


def test_a_template_that_fails_leaves_the_conversation():
    template = "{% if messages[-1].content == 'w9' %}{{ raise_exception('no w9') }}{% endif %}w2 w3"
    conversation = Conversation(chat_pair(template=template), max_new_tokens=3)
    with pytest.raises(InputError, match=r"the chat template refuses these turns \(user\): .*no w9"):
        list(conversation.say("w9"))
    assert conversation.turns == [] and list(conversation.say("w8"))
