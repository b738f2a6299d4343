"""OpenAI's API without a socket: every text is that of ``generate``, and every wrong field is named."""

from __future__ import annotations

import json

import pytest
import torch

from bild.serving import build_app
from tests.evaluation.chats import chat_pair
from tests.serving.conftest import TestClient, decoder, is_idle, started, wait_until

TEXTS = ["w7 w8 w9", "w3", "w20 w21 w22 w23 w5 w6", "w11 w12"]
LONGEST = 12


def chunks(response) -> list[dict]:
    """The events of a stream."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_texts_are_those_of_generate(client, pair):
    for policy in ("bild", "exact", "large", "small"):
        body = {"model": "bild", "prompt": TEXTS, "max_tokens": LONGEST, "policy": policy}
        answer = client.post("/v1/completions", json=body).json()
        expected = pair.generate(TEXTS, policy, max_new_tokens=LONGEST)
        assert [choice["text"] for choice in answer["choices"]] == [result.text for result in expected]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        reasons = ["length" if result.finish_reason == "length" else "stop" for result in expected]
        assert [choice["finish_reason"] for choice in answer["choices"]] == reasons
        assert answer["usage"]["completion_tokens"] == sum(len(result.token_ids) for result in expected)
        assert answer["usage"]["prompt_tokens"] == sum(len(pair.tokenizer(text).input_ids) for text in TEXTS)
        assert answer["bild"]["lossless"] == (policy in ("exact", "large"))


def test_prompts_may_be_token_ids(client, pair):
    ids = [pair.tokenizer(text).input_ids for text in TEXTS[:2]]
    by_text = client.post("/v1/completions", json={"prompt": TEXTS[:2], "max_tokens": 5}).json()["choices"]
    assert client.post("/v1/completions", json={"prompt": ids, "max_tokens": 5}).json()["choices"] == by_text
    assert client.post("/v1/completions", json={"prompt": ids[0], "max_tokens": 5}).json()["choices"] == by_text[:1]


def test_a_chat_with_one_turn_is_the_source_and_its_system_turn_the_prefix(client, pair):
    turns = [{"role": "system", "content": "w4 "}, {"role": "user", "content": [{"type": "text", "text": "w7"}]}]
    answer = client.post("/v1/chat/completions", json={"messages": turns, "max_completion_tokens": 9}).json()
    (expected,) = pair.generate("w7", prefix="w4 ", max_new_tokens=9)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text, "refusal": None}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_the_same_text_in_pieces(client, pair, path):
    asked = {"prompt": TEXTS[2]} if path == "/v1/completions" else {"messages": [{"role": "user", "content": TEXTS[2]}]}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**asked, "max_tokens": LONGEST, "stream": True, "stream_options": options, "stop": None}
    found = chunks(client.post(path, json=body))
    (expected,) = pair.generate(TEXTS[2], max_new_tokens=LONGEST)
    *pieces, end, usage = found
    said = [c["choices"][0].get("text", c["choices"][0].get("delta", {}).get("content")) for c in pieces]
    assert "".join(said) == expected.text and len(pieces) > 1
    if "messages" in asked:
        assert ["role" in c["choices"][0]["delta"] for c in pieces] == [True] + [False] * (len(pieces) - 1)
    assert end["choices"][0]["finish_reason"] == "length" and usage["choices"] == []
    assert [c["choices"][0]["finish_reason"] for c in pieces] == [None] * len(pieces)
    assert usage["usage"]["completion_tokens"] == len(expected.token_ids)
    seen = [c["usage"]["completion_tokens"] for c in pieces]
    assert seen == sorted(seen) and seen[-1] <= len(expected.token_ids)
    assert len({c["id"] for c in found}) == 1


def test_streams_of_several_texts_are_told_apart_by_their_index(client, pair):
    found = chunks(client.post("/v1/completions", json={"prompt": TEXTS, "max_tokens": 8, "stream": True}))
    texts = ["".join(c["choices"][0]["text"] for c in found if c["choices"][0]["index"] == at) for at in range(4)]
    assert texts == [result.text for result in pair.generate(TEXTS, max_new_tokens=8)]


def test_n_texts_of_one_seed_are_those_of_generate(client, pair):
    body = {"prompt": TEXTS[0], "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": LONGEST}
    answer = client.post("/v1/completions", json=body).json()
    drawn = {"do_sample": True, "temperature": 1.5, "seed": 5, "top_p": 1.0, "top_k": 0}
    expected = [result.text for result in pair.generate([TEXTS[0]] * 3, max_new_tokens=LONGEST, **drawn)]
    assert [choice["text"] for choice in answer["choices"]] == expected and len(set(expected)) == 3
    assert client.post("/v1/completions", json=body).json()["choices"] == answer["choices"]
    assert answer["usage"]["prompt_tokens"] == len(pair.tokenizer(TEXTS[0]).input_ids)


@pytest.mark.parametrize("policy", [None, "exact", "small"])
def test_a_beam_search_has_n_hypotheses(client, pair, policy):
    options = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": "never"}
    body = {"prompt": TEXTS[:2], "max_tokens": LONGEST, "n": 2, "policy": policy, **options}
    answer = client.post("/v1/completions", json=body).json()
    results = pair.generate(TEXTS[:2], policy, max_new_tokens=LONGEST, **options)
    expected = [each for result in results for each in result.hypotheses[:2]]
    texts = [pair.tokenizer.decode(each.tokens, skip_special_tokens=True) for each in expected]
    assert [choice["text"] for choice in answer["choices"]] == texts and len(set(texts)) == 4
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    reasons = ["length" if each.finish_reason == "length" else "stop" for each in expected]
    assert [choice["finish_reason"] for choice in answer["choices"]] == reasons
    assert answer["usage"]["completion_tokens"] == sum(len(each.tokens) for each in expected)
    assert answer["usage"]["prompt_tokens"] == sum(len(pair.tokenizer(text).input_ids) for text in TEXTS[:2])


def test_a_drawn_beam_search_is_that_of_its_seed(client, pair):
    body = {"prompt": TEXTS[1], "max_tokens": LONGEST, "n": 2, "num_beams": 3, "temperature": 1.5, "seed": 5}
    answer = client.post("/v1/completions", json=body).json()
    drawn = {"do_sample": True, "temperature": 1.5, "seed": 5, "top_p": 1.0, "top_k": 0}
    (result,) = pair.generate(TEXTS[1], num_beams=3, max_new_tokens=LONGEST, **drawn)
    texts = [pair.tokenizer.decode(each.tokens, skip_special_tokens=True) for each in result.hypotheses[:2]]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert texts[0] != pair.generate(TEXTS[1], num_beams=3, max_new_tokens=LONGEST)[0].text


def test_a_beam_search_is_streamed_as_far_as_all_hypotheses_agree(client, pair):
    body = {"prompt": TEXTS[2], "max_tokens": LONGEST, "num_beams": 3, "stream": True}
    found = chunks(client.post("/v1/completions", json=body))
    (result,) = pair.generate(TEXTS[2], num_beams=3, max_new_tokens=LONGEST)
    assert "".join(c["choices"][0]["text"] for c in found) == result.text
    whole = client.post("/v1/completions", json=body | {"stream": False}).json()
    assert [choice["text"] for choice in whole["choices"]] == [result.text]


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client, pair):
    (whole,) = pair.generate(TEXTS[2], max_new_tokens=LONGEST)
    stop = whole.text.split()[4]
    before = whole.text[: whole.text.index(stop)]
    body = {"prompt": TEXTS[2], "max_tokens": LONGEST, "stop": [stop, "never"]}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    found = chunks(client.post("/v1/completions", json=body | {"stream": True}))
    assert "".join(c["choices"][0]["text"] for c in found) == before
    (choice,) = client.post("/v1/completions", json=body | {"include_stop_str_in_output": True}).json()["choices"]
    assert choice["text"] == before + stop


def test_options_reach_the_loop(client, pair):
    (plain,) = pair.generate(TEXTS[2], "large", max_new_tokens=LONGEST)
    words = plain.text.split()

    def text(**options):
        answer = client.post(
            "/v1/completions", json={"prompt": TEXTS[2], "max_tokens": LONGEST, "policy": "large", **options}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    assert words[0] not in text(bad_words=[words[0]]).split()
    other = next(at for at, id in enumerate(plain.token_ids) if id != plain.token_ids[0])
    assert text(stop_token_ids=[plain.token_ids[other]]).split() == words[: other + 1]
    assert text(stop_token_ids=[plain.token_ids[other]], ignore_eos=True).split() == words[: other + 1]
    assert (
        text(repetition_penalty=3.0)
        == pair.generate(TEXTS[2], "large", max_new_tokens=LONGEST, repetition_penalty=3.0)[0].text
    )
    sampled = {"temperature": 2.0, "seed": 1}
    options = {"do_sample": True, "temperature": 2.0, "seed": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1}
    assert (
        text(top_p=0.5, top_k=3, min_p=0.1, **sampled)
        == pair.generate(TEXTS[2], "large", max_new_tokens=LONGEST, **options)[0].text
    )
    assert text(temperature=0, top_p=0.3, seed=4) == plain.text
    assert text(user="me", metadata={"a": 1}, frequency_penalty=0, logit_bias={}, echo=False, n=1) == plain.text
    assert text(policy="exact", lossless=True) == pair.generate(TEXTS[2], "exact", max_new_tokens=LONGEST)[0].text
    ends = pair.generation_config
    before, ends.eos_token_id = ends.eos_token_id, plain.token_ids[other]
    try:
        assert text().split() == words[: other + 1]
        assert text(ignore_eos=True, min_tokens=99) == plain.text
    finally:
        ends.eos_token_id = before


def test_a_trace_says_who_wrote_what_and_what_was_lost(client, pair):
    (expected,) = pair.generate(TEXTS[2], max_new_tokens=40)
    assert expected.stats.num_rollbacks
    body = {"prompt": TEXTS[2], "max_tokens": 40, "bild": {"trace": True}}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    found = chunks(client.post("/v1/completions", json=body | {"stream": True}))
    for rounds in (choice["bild"], [c["choices"][0]["bild"] for c in found if "bild" in c["choices"][0]]):
        tokens = [token for each in rounds for token in each["tokens"]]
        assert [token["id"] for token in tokens] == expected.token_ids
        assert [token["writer"] for token in tokens] == expected.writers
        assert sum(bool(each["lost"]) for each in rounds) == expected.stats.num_rollbacks


def own_logprobs(pair, text: str, tokens: list[int], which: str = "large") -> torch.Tensor:
    """What a model says of each place of a text, read in one piece ``[T, V]``."""
    network = getattr(pair, which).network
    source = torch.tensor([pair.tokenizer(text).input_ids])
    with torch.inference_mode():
        logits = network(input_ids=source, decoder_input_ids=torch.tensor([[0, *tokens[:-1]]])).logits[0]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("policy", ["bild", "exact", "large", "small"])
def test_logprobs_of_a_completion_are_those_of_the_model_that_has_the_last_word(client, pair, policy):
    (expected,) = pair.generate(TEXTS[2], policy, max_new_tokens=LONGEST)
    body = {"prompt": TEXTS[2], "max_tokens": LONGEST, "policy": policy, "logprobs": 3}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    found = choice["logprobs"]
    own = own_logprobs(pair, TEXTS[2], expected.token_ids, "small" if policy == "small" else "large")
    assert choice["text"] == expected.text == "".join(found["tokens"])
    assert found["token_logprobs"] == pytest.approx(own[range(LONGEST), expected.token_ids].tolist(), abs=1e-5)
    assert found["text_offset"] == [len("".join(found["tokens"][:at])) for at in range(LONGEST)]
    for best, top, token, value in zip(
        own.topk(3).values.tolist(), found["top_logprobs"], found["tokens"], found["token_logprobs"], strict=True
    ):
        assert list(top.values())[:3] == pytest.approx(best, abs=1e-5) and 3 <= len(top) <= 4 and top[token] == value
    events = chunks(client.post("/v1/completions", json=body | {"stream": True}))
    pieces = [event["choices"][0]["logprobs"] for event in events]
    assert pieces[-1] is None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for piece in pieces[:-1] for each in piece[name]] == found[name]
    (plain,) = client.post("/v1/completions", json=body | {"logprobs": 0}).json()["choices"]
    assert [list(each.values()) for each in plain["logprobs"]["top_logprobs"]] == [[v] for v in found["token_logprobs"]]


def test_logprobs_of_a_chat_have_bytes_that_join_to_the_text(client, pair):
    (expected,) = pair.generate(TEXTS[2], max_new_tokens=LONGEST)
    turns = [{"role": "user", "content": TEXTS[2]}]
    body = {"messages": turns, "max_tokens": LONGEST, "logprobs": True, "top_logprobs": 2}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    content = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None and choice["message"]["content"] == expected.text
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == expected.text
    own = own_logprobs(pair, TEXTS[2], expected.token_ids)
    assert [each["logprob"] for each in content] == pytest.approx(
        own[range(LONGEST), expected.token_ids].tolist(), abs=1e-5
    )
    assert [[top["logprob"] for top in each["top_logprobs"]] for each in content] == [
        pytest.approx(best, abs=1e-5) for best in own.topk(2).values.tolist()
    ]
    events = chunks(client.post("/v1/chat/completions", json=body | {"stream": True}))
    assert [each for e in events if (p := e["choices"][0]["logprobs"]) for each in p["content"]] == content
    body = {"messages": turns, "max_tokens": 3, "logprobs": True}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert [each["top_logprobs"] for each in choice["logprobs"]["content"]] == [[]] * 3
    (choice,) = client.post("/v1/chat/completions", json=body | {"logprobs": False}).json()["choices"]
    assert choice["logprobs"] is None


@pytest.mark.parametrize("verify_end", ["true", "false"])
def test_an_end_token_has_its_name_no_bytes_and_a_likelihood(client, pair, verify_end):
    (plain,) = pair.generate(TEXTS[2], max_new_tokens=LONGEST)
    body = {"max_tokens": LONGEST, "policy": f"bild:fallback_threshold=0:verify_end={verify_end}"}
    ends = plain.token_ids[3]
    asked = {"stop_token_ids": [ends], "logprobs": True, "messages": [{"role": "user", "content": TEXTS[2]}]}
    (choice,) = client.post("/v1/chat/completions", json=body | asked).json()["choices"]
    (without,) = client.post("/v1/chat/completions", json=body | asked | {"logprobs": False}).json()["choices"]
    assert choice["message"] == without["message"] and choice["finish_reason"] == "stop"
    assert all(each["logprob"] < 0 for each in choice["logprobs"]["content"])


def test_what_a_stop_string_cuts_off_has_no_logprobs(client, pair):
    (whole,) = pair.generate(TEXTS[2], max_new_tokens=LONGEST)
    words = whole.text.split()
    body = {"prompt": TEXTS[2], "max_tokens": LONGEST, "logprobs": 1, "stop": f"{words[4]} {words[5]}"}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]).startswith(choice["text"])
    assert len(found["tokens"]) < len(words) and found["text_offset"][-1] < len(choice["text"])
    events = chunks(client.post("/v1/completions", json=body | {"stream": True}))
    pieces = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [token for piece in pieces for token in piece["tokens"]] == found["tokens"]


def test_times_and_acceptance_have_vllm_s_names(client):
    answer = client.post("/v1/completions", json={"prompt": TEXTS, "max_tokens": LONGEST}).json()
    times, seen = answer["metrics"], answer["metrics"]["speculative_decoding"]
    assert times["time_to_first_token_ms"] > 0 and 0 <= times["queue_time_ms"] <= times["time_to_first_token_ms"]
    assert len(seen["acceptance_histogram"]) == seen["num_spec_tokens"] + 1
    assert sum(seen["acceptance_histogram"]) == seen["num_spec_steps"]
    accepted = sum(count * at for at, count in enumerate(seen["acceptance_histogram"]))
    assert accepted == seen["num_accepted_draft_tokens"] <= seen["num_draft_tokens"]


TURN = {"role": "user", "content": "w7"}
WRONG = [
    ({"prompt": "w7", "temprature": 1}, 400, "temprature", "did you mean temperature"),
    ({"prompt": "w7", "n": 2}, 400, "n", "all texts are the same"),
    ({"prompt": "w7", "n": 3, "num_beams": 2}, 400, "n", "a search of 2 beams finds 2 texts"),
    ({"prompt": "w7", "n": 2, "num_beams": 2, "stream": True}, 400, "n", "one text is streamed"),
    ({"prompt": "w7", "num_beams": 17}, 400, "num_beams", "1 to 16"),
    ({"prompt": "w7", "num_beams": 2, "early_stopping": "soon"}, 400, "early_stopping", 'true or false or "never"'),
    ({"prompt": "w7", "num_beams": 2, "early_stopping": 1}, 400, "early_stopping", "early_stopping is 1"),
    ({"prompt": "w7", "length_penalty": 2}, 400, None, "length_penalty shapes a beam search"),
    ({"prompt": "w7", "num_beams": 2, "policy": "bild"}, 400, None, "a beam search is of one model"),
    ({"prompt": "w7", "num_beams": 2, "logprobs": 1}, 400, None, "a beam search has no logprobs"),
    ({"prompt": "w7", "num_beams": 16, "policy": "exact", "max_tokens": 4000}, 400, None, "or num_beams"),
    ({"prompt": "w7", "n": 5, "temperature": 1}, 400, "n", "a whole number, 1 to 4"),
    ({"prompt": "w7", "n": True}, 400, "n", "n is true"),
    ({"prompt": "w7", "temperature": "warm"}, 400, "temperature", "temperature is str"),
    ({"prompt": "w7", "temperature": -1}, 400, "temperature", "0 to 100"),
    ({"prompt": "w7", "top_p": 0.5}, 400, "top_p", "without a temperature nothing is drawn"),
    ({"prompt": "w7", "top_p": 0, "temperature": 1}, 400, "top_p", "more than 0"),
    ({"prompt": "w7", "max_tokens": 0}, 400, "max_tokens", "1 to"),
    ({"prompt": "w7", "max_tokens": 1.5}, 400, "max_tokens", "a whole number"),
    ({"prompt": "w7", "max_tokens": 10**6}, 400, None, "needs room for"),
    ({"prompt": "w7", "seed": 2**63}, 400, "seed", "a whole number"),
    ({"prompt": "w7", "stop": ["a"] * 5}, 400, "stop", "a list of at most 4"),
    ({"prompt": "w7", "stop": ""}, 400, "stop", "of 1 to 256 characters"),
    ({"prompt": "w7", "stop": [1]}, 400, "stop", "a text, or a list"),
    ({"prompt": "w7", "logprobs": 6}, 400, "logprobs", "0 to 5"),
    ({"prompt": "w7", "logprobs": True}, 400, "logprobs", "logprobs is true; allowed is a whole number"),
    ({"prompt": "w7", "top_logprobs": 2}, 400, "top_logprobs", "did you mean logprobs"),
    ({"prompt": "w7", "best_of": 2}, 400, "best_of", "not supported"),
    ({"prompt": "w7", "echo": True}, 400, "echo", "leave it out"),
    ({"prompt": "w7", "logit_bias": {"3": 1}}, 400, "logit_bias", "not supported"),
    ({"prompt": "w7", "stream": "yes"}, 400, "stream", "true or false"),
    ({"prompt": "w7", "stream_options": {"include_usage": True}}, 400, "stream_options", "stream is not true"),
    (
        {"prompt": "w7", "stream": True, "stream_options": {"include_usag": 1}},
        400,
        "stream_options",
        "did you mean include_usage",
    ),
    ({"prompt": "w7", "policy": "fast"}, 400, None, "policy is 'fast'"),
    ({"prompt": "w7", "policy": "exact:max_draft_tokens=1025"}, 400, "policy", "allowed is 1 to 1024"),
    ({"prompt": "w7", "policy": "speculative_sampling:window=99999999999999"}, 400, "policy", "allowed is 1 to 1024"),
    ({"prompt": "w7", "policy": "pyramid"}, 400, None, "what a middle model lets pass, and there is none"),
    ({"prompt": "w7", "policy": "reward"}, 400, None, "judges segments by a reward, and there is none"),
    ({"prompt": "w7", "lossless": True}, 400, None, "does not give the large model's own text"),
    ({"prompt": "w7", "task": "hunger"}, 400, None, "task is 'hunger'"),
    ({"prompt": "w7", "bad_words": "x" * 300}, 400, "bad_words", "of 1 to 256 characters"),
    ({"prompt": "w7", "stop_token_ids": [0.5]}, 400, "stop_token_ids", "token ids"),
    (
        {"prompt": "w7", "stop_token_ids": [3, -1]},
        400,
        "stop_token_ids",
        "stop_token_ids names -1; allowed are 0 to 39",
    ),
    ({"prompt": "w7", "stop_token_ids": [10**9]}, 400, "stop_token_ids", "names 1000000000"),
    ({"prompt": "w7", "policy": "x" * 1001}, 400, "policy", "a text of at most 1000 characters"),
    ({"prompt": ""}, 400, None, "the text is empty"),
    ({"prompt": [["w7"]]}, 400, "prompt", "cannot be read"),
    ({"prompt": [1, "w7"]}, 400, "prompt", "cannot be read"),
    ({"prompt": [999]}, 400, None, "outside the vocabulary"),
    ({"prompt": ["w7"] * 5000}, 400, None, "allowed are 4096"),
    ({"prompt": {"a": 1}}, 400, "prompt", "cannot be read"),
    ({}, 400, "prompt", "prompt is missing"),
    ({"prompt": "w7", "model": "gpt-9"}, 404, "model", "there is no model 'gpt-9'"),
    ({"prompt": "w7", "model": 7}, 400, "model", "model is 7"),
    ({"messages": []}, 400, "messages", "messages are missing"),
    ({"messages": "hi"}, 400, "messages", "messages are missing"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages", "allowed are system"),
    ({"messages": [{"role": "user"}]}, 400, "messages", "has no text"),
    ({"messages": [TURN, TURN]}, 400, "messages", "send one user turn"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages", "send one user turn"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "has no text"),
    ({"messages": [{**TURN, "tool_calls": [1]}]}, 400, "messages", "not supported"),
    ({"messages": [TURN], "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"messages": [TURN], "response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"messages": [TURN], "logprobs": 1}, 400, "logprobs", "true or false"),
    ({"messages": [TURN], "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "0 to 20"),
    ({"messages": [TURN], "top_logprobs": 2}, 400, "top_logprobs", "logprobs is not true"),
]


@pytest.mark.parametrize(("body", "status", "param", "says"), WRONG)
def test_what_cannot_be_done_is_said_and_the_field_named(client, service, body, status, param, says):
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert says in error["message"] and "\n" not in error["message"]
    assert is_idle(service)


def test_a_text_that_is_too_long_has_openai_s_code(client):
    answer = client.post("/v1/completions", json={"prompt": "w7 " * 70_000})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    stream = client.post("/v1/completions", json={"prompt": "w7 " * 70_000, "stream": True})
    assert stream.status_code == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"7", b"null", b'"w7"', b"\xff\xfe", b'{"prompt": NaN}',
        b'{"prompt": "w7", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}', b'{"prompt": "w7", "policy": "\\udfff"}', b"[" * 100_000,
        b'{"a":' * 50_000, b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}", b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "w7", "seed": ' + b"9" * 400 + b"}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/translate", "/detect"])
def test_garbage_is_a_400(client, service, path, raw):
    answer = client.post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]
    assert is_idle(service)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"prompt": NaN}', "not JSON in UTF-8"),
        (b"{", "not JSON in UTF-8"),
        (b'{"prompt": "w7", "temperature": 1e999}', "a number that is too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number that is too large"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_garbage_is_called_what_it_is(client, raw, says):
    answer = client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert says in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_kind_of_error(client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "there is nothing at this path"
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"


def test_models(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "bild" and model["bild"]["lossless"] is False and model["bild"]["max_rows"] == 4
    assert client.get("/v1/models/bild").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_lenient_passes_over_unknown_fields_and_counts_them(pair):
    own = started(pair, lenient=True)
    client = TestClient(build_app(own))
    answer = client.post("/v1/completions", json={"prompt": "w7", "max_tokens": 3, "temprature": 1})
    assert answer.status_code == 200
    assert 'unknown_fields_total{engine="0",model_name="bild"} 1.0' in client.get("/metrics").text
    own.engine.stop()


def test_the_next_turn_of_a_conversation_says_how_much_of_it_was_known():
    pair = chat_pair(256)
    own = started(pair)
    client = TestClient(build_app(own))
    turns = [{"role": "user", "content": " ".join(f"w{5 + at}" for at in range(24)) + " w6 w7" * 8}]
    usages = []
    for _ in range(2):
        answer = client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 9}).json()
        said = answer["choices"][0]["message"]["content"]
        assert said == pair.generate([turns], max_new_tokens=9)[0].text
        usages.append(answer["usage"])
        turns += [{"role": "assistant", "content": said}, TURN]
    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    # All of the first turn's prompt, and its answer but for the last token, which nobody read.
    assert first == 0 and second >= usages[0]["prompt_tokens"]
    several = {"messages": turns, "max_tokens": 3, "n": 2, "temperature": 1, "seed": 1}
    usage = client.post("/v1/chat/completions", json=several).json()["usage"]
    assert usages[1]["prompt_tokens"] <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    labels, asked = '{engine="0",model_name="bild"}', sum(each["prompt_tokens"] for each in [*usages, usage, usage])
    done = f"bild:prefix_cache_queries_total{labels} {float(asked)}"
    wait_until(lambda: done in client.get("/metrics").text)
    assert f"bild:prefix_cache_hits_total{labels} 0.0" not in client.get("/metrics").text
    salted = {"messages": turns, "max_tokens": 3, "cache_salt": "own"}
    known = [
        client.post("/v1/chat/completions", json=asked).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        for asked in (salted, salted, salted | {"cache_salt": "other"})
    ]
    assert known[0] == known[2] == 0 < known[1]
    own.engine.stop()


def test_a_decoder_only_pair_continues_prompts_and_takes_conversations():
    pair = decoder("gpt2")
    own = started(pair)
    client = TestClient(build_app(own))
    body = {"prompt": ["w7 w8", "w3 w4 w5"], "max_tokens": 7}
    texts = [choice["text"] for choice in client.post("/v1/completions", json=body).json()["choices"]]
    assert texts == [result.text for result in pair.generate(body["prompt"], max_new_tokens=7)]
    turns = {"messages": [TURN, {"role": "assistant", "content": "w8"}, TURN], "max_tokens": 5}
    assert "no chat template" in client.post("/v1/chat/completions", json=turns).json()["error"]["message"]
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    for tokenizer in (pair.tokenizer, own.tokenizer):
        tokenizer.chat_template = template
    found = client.post("/v1/chat/completions", json=turns).json()["choices"][0]["message"]["content"]
    assert found == pair.generate([turns["messages"]], max_new_tokens=5)[0].text
    # A template changes nothing of plain prompts.
    assert [choice["text"] for choice in client.post("/v1/completions", json=body).json()["choices"]] == texts
    wait_until(lambda: is_idle(own))
    own.engine.stop()
