"""What a request to OpenAI's API asks for, field by field (docs/serving.md has the table)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bild.decoding import Beams
from bild.serving import fields
from bild.serving.fields import Check, anything, boolean, mapping, neutral, number, text, whole
from bild.serving.problems import bad
from bild.serving.service import MOST_BEAMS, Ask, Service

LONGEST_STOP = 256
MOST_TOKENS = 1 << 20
INT64 = (-(1 << 63), (1 << 63) - 1)
ROLES = ("system", "developer", "user", "assistant")

ONE_PROMPT = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "integer"}}]}
PROMPT = {"anyOf": [*ONE_PROMPT["anyOf"], {"type": "array", "minItems": 1, "items": ONE_PROMPT}]}
PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": PART}]},
            "name": {"type": "string"},
        },
        "required": ["role", "content"],
    },
}

SHARED: dict[str, Check] = {
    "model": text,
    "stream": boolean,
    "stream_options": mapping(include_usage=boolean, continuous_usage_stats=boolean, include_obfuscation=boolean),
    "seed": whole(*INT64),
    "temperature": number(0, 100),
    "top_p": number(0, 1),
    "max_tokens": whole(1, MOST_TOKENS),
    # As vLLM has them.
    "top_k": whole(-1, MOST_TOKENS),
    "min_p": number(0, 1),
    "repetition_penalty": number(1e-3, 1e3),
    "min_tokens": whole(0, MOST_TOKENS),
    "ignore_eos": boolean,
    "stop_token_ids": fields.ids(64),
    "include_stop_str_in_output": boolean,
    "bad_words": fields.texts(64, 256),
    "cache_salt": text,
    # Ours.
    "policy": fields.short(1000),
    "lossless": boolean,
    "task": fields.short(100),
    "src_lang": fields.short(100),
    "tgt_lang": fields.short(100),
    "num_beams": whole(1, MOST_BEAMS),
    "length_penalty": number(-Beams.MOST_PENALTY, Beams.MOST_PENALTY),
    "early_stopping": fields.one_of(True, False, "never"),
    "bild": mapping(trace=boolean),
    # Accepted where they change nothing.
    "skip_special_tokens": neutral(True),
    "frequency_penalty": neutral(0),
    "presence_penalty": neutral(0),
    "logit_bias": neutral({}),
    "best_of": neutral(1),
    "truncate_prompt_tokens": neutral(),
    "priority": neutral(0),
    # Accepted on purpose, and without meaning here.
    **dict.fromkeys(("user", "metadata", "store", "service_tier", "request_id", "safety_identifier"), anything),
}
COMPLETION: dict[str, Check] = SHARED | {
    "prompt": fields.says(PROMPT)(lambda name, value: value),
    "logprobs": whole(0, 5),
    "echo": neutral(False),
    "suffix": neutral(""),
}
CHAT: dict[str, Check] = SHARED | {
    "messages": fields.says(MESSAGES)(lambda name, value: value),
    "max_completion_tokens": whole(1, MOST_TOKENS),
    "logprobs": boolean,
    "top_logprobs": whole(0, 20),
    "tools": neutral([]),
    "tool_choice": neutral("none", "auto"),
    "functions": neutral([]),
    "response_format": neutral({"type": "text"}),
    "modalities": neutral(["text"]),
    "add_generation_prompt": neutral(True),
    "parallel_tool_calls": anything,
    "prompt_cache_key": anything,
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request to OpenAI's API.

    Args:
        ask: what is to be decoded.
        stream: whether the answer comes in pieces.
        usage: whether a stream ends with the counts.
        running_usage: whether each piece has the counts so far.
        trace: whether each piece says who wrote it.
    """

    ask: Ask
    stream: bool = False
    usage: bool = False
    running_usage: bool = False
    trace: bool = False


def own_fields(service: Service) -> dict[str, Check]:
    """Fields whose range is the server's."""
    limits, settings = service.engine.limits, service.settings
    return {"n": whole(1, limits.rows), "stop": fields.texts(settings.stops, LONGEST_STOP)}


def completion(service: Service, body: Any) -> Wish:
    """What a body sent to ``/v1/completions`` wants.

    Raises:
        Problem: a field that cannot be used.
    """
    given = _read(service, body, COMPLETION)
    items = _prompts(given.get("prompt"))
    options = {} if service.encodes else {"chat": False}
    return _wish(service, given, items, options)


def chat(service: Service, body: Any) -> Wish:
    """What a body sent to ``/v1/chat/completions`` wants.

    Raises:
        Problem: a field that cannot be used.
    """
    given = _read(service, body, CHAT)
    turns = _turns(given.get("messages"))
    given["logprobs"] = _logprobs(given)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    if not service.encodes:
        return _wish(service, given, [turns], {})
    systems = [turn["content"] for turn in turns if turn["role"] in ("system", "developer")]
    users = [turn["content"] for turn in turns if turn["role"] == "user"]
    if len(users) != 1 or len(systems) > 1 or len(users) + len(systems) != len(turns):
        raise bad(
            "this pair reads one source and writes its text: send one user turn, and at most one system turn, whose "
            "content is put before the source",
            "messages",
        )
    return _wish(service, given, users, {"prefix": systems[0]} if systems else {})


def _read(service: Service, body: Any, known: Mapping[str, Check]) -> dict[str, Any]:
    passed: Callable[[str], None] | None = service.board.unknown if service.settings.lenient else None
    return fields.read(body, {**known, **own_fields(service)}, passed)


def _wish(service: Service, given: dict[str, Any], items: list[Any], options: dict[str, Any]) -> Wish:
    options = options | _options(service, given)
    count, others, beams = given.get("n", 1), 0, given.get("num_beams", 1)
    if beams > 1:
        if count > beams:
            raise bad(f"n is {count}, and a search of {beams} beams finds {beams} texts; raise num_beams", "n")
        if count > 1 and given.get("stream"):
            raise bad("n is more than 1, and of a beam search one text is streamed; leave n or stream out", "n")
        count, others = 1, count - 1
    elif count > 1 and not options.get("do_sample"):
        raise bad(
            "n is more than 1, and without a temperature above 0 all texts are the same; set one, or num_beams", "n"
        )
    stream = given.get("stream_options", {})
    if stream and not given.get("stream"):
        raise bad("stream_options are given and stream is not true; set it, or leave them out", "stream_options")
    ask = Ask(
        items=items,
        options=options,
        count=count,
        others=others,
        policy=given.get("policy"),
        lossless=given.get("lossless", False),
        stops=given.get("stop", ()),
        keep_stop=given.get("include_stop_str_in_output", False),
        salt=given.get("cache_salt", ""),
    )
    return Wish(
        ask=ask,
        stream=given.get("stream", False),
        usage=stream.get("include_usage", False),
        running_usage=stream.get("continuous_usage_stats", False),
        trace=given.get("bild", {}).get("trace", False),
    )


def _options(service: Service, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the decoder, under its names."""
    names = {
        "max_tokens": "max_new_tokens",
        "repetition_penalty": "repetition_penalty",
        "min_tokens": "min_new_tokens",
        "stop": "stop_strings",
        "task": "task",
        "src_lang": "src_lang",
        "tgt_lang": "tgt_lang",
        "num_beams": "num_beams",
        "length_penalty": "length_penalty",
        "early_stopping": "early_stopping",
    }
    options = {ours: given[name] for name, ours in names.items() if name in given}
    options |= _draws(given)
    if given.get("logprobs") is not None:
        options["logprobs"] = given["logprobs"]
    stops = set(given.get("stop_token_ids", ()))
    size = service.decoder.large.vocab_size
    if wrong := [id for id in stops if not 0 <= id < size]:
        raise bad(f"stop_token_ids names {wrong[0]}; allowed are 0 to {size - 1}"[:200], "stop_token_ids")
    if given.get("ignore_eos"):
        # Or no token of the vocabulary, so the end is an ordinary one, and may come as early as it likes.
        options["eos_token_id"] = sorted(stops) or -1
        if not stops:
            options.pop("min_new_tokens", None)
    elif stops:
        own = service.decoder.asked({})[1].eos_token_ids
        options["eos_token_id"] = sorted({*own, *stops})
    if "bad_words" in given and service.tokenizer is not None:
        forms = [form for word in given["bad_words"] for form in (word, f" {word}")]
        words = [list(service.tokenizer(form, add_special_tokens=False).input_ids) for form in forms]
        options["bad_words_ids"] = [ids for at, ids in enumerate(words) if ids and ids not in words[:at]]
    return options


def _logprobs(given: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens a conversation is to have beside each one; None: none, and no likelihoods."""
    count: int = given.get("top_logprobs", 0)
    if given.get("logprobs"):
        return count
    if count:
        raise bad("top_logprobs is given and logprobs is not true; set it, or leave top_logprobs out", "top_logprobs")
    return None


def _draws(given: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens are drawn; without a temperature they are not."""
    temperature = given.get("temperature")
    shaping = {name: given[name] for name in ("top_p", "top_k", "min_p") if name in given}
    if shaping.get("top_k") == -1:
        shaping["top_k"] = 0
    if temperature is None:
        idle = [name for name, value in shaping.items() if value != {"top_p": 1, "top_k": 0, "min_p": 0}[name]]
        if idle:
            raise bad(
                f"{idle[0]} shapes draws, and without a temperature nothing is drawn here; set one above 0, or leave "
                f"{idle[0]} out",
                idle[0],
            )
        return {}
    if temperature == 0:
        return {}
    if shaping.get("top_p") == 0:
        raise bad("top_p is 0; allowed is more than 0, at most 1", "top_p")
    draws = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0} | shaping
    return draws | ({"seed": given["seed"]} if "seed" in given else {})


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(type(each) is int for each in prompt):
            return [prompt]
        if all(isinstance(each, str) for each in prompt) or all(_is_ids(each) for each in prompt):
            return list(prompt)
    if prompt is None:
        raise bad("prompt is missing; send a text, a list of texts, token ids, or lists of them", "prompt")
    raise bad("prompt cannot be read; send a text, a list of texts, token ids, or lists of them", "prompt")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _turns(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise bad("messages are missing; send a list of turns, each with a role and a content", "messages")
    return [_turn(f"messages[{at}]", each) for at, each in enumerate(messages)]


def _turn(name: str, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise bad(f"{name} has no role, or one that is not supported; allowed are {', '.join(ROLES)}", "messages")
    for key, value in turn.items():
        if key not in ("role", "content", "name") and value not in (None, [], ""):
            raise bad(f"{name} has a field {key[: fields.SHOWN]!r}, which is not supported; leave it out", "messages")
    content = turn.get("content")
    if isinstance(content, list) and all(isinstance(each, dict) and each.get("type") == "text" for each in content):
        parts = [each.get("text") for each in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise bad(f"{name} has no text; send a text as its content", "messages")
    return {"role": turn["role"], "content": content}
