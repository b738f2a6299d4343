"""Keys, sizes, full queues, dead engines, logs: what stands before a request, without a socket."""

from __future__ import annotations

import json
import logging

import pytest

from bild.engine import Limits
from bild.errors import InputError
from bild.serving import Settings, build_app
from bild.serving.settings import Keys
from tests.serving.conftest import TestClient, is_idle, started, wait_until

ASK = {"prompt": "w7", "max_tokens": 3}


@pytest.fixture
def guarded(pair):
    own = started(pair, keys=Keys.of(["secret", "other"]))
    yield TestClient(build_app(own))
    own.engine.stop()


PATHS = ["/v1/models", "/v1/models/bild", "/metrics", "/version", "/openapi.json", "/docs", "/languages", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_everything_but_health_needs_a_key(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code in (401, 403)
    assert guarded.get(path, headers={"Authorization": "Bearer wrong"}).status_code == answer.status_code
    allowed = guarded.get(path, headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == (404 if path in ("/docs", "/nothing") else 200)
    assert guarded.get(path, headers={"X-API-Key": "other"}).status_code == allowed.status_code


def test_health_needs_none(guarded):
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_wrong_keys_have_openai_s_error(guarded):
    answer = guarded.post("/v1/completions", json=ASK)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["connection"] == "close"
    assert guarded.post("/v1/completions", json=ASK, headers={"Authorization": "Bearer other"}).status_code == 200


@pytest.mark.parametrize("key", ["wrong", "", None, 7, ["secret"]])
def test_libretranslate_s_key_is_in_the_body(guarded, key):
    body = {"q": "w7", "source": "de", "target": "en"}
    assert guarded.post("/translate", json=body | {"api_key": key}).status_code == 403
    assert guarded.post("/translate", json=body | {"api_key": "secret"}).status_code == 200
    assert guarded.post("/translate", data=body | {"api_key": "secret"}).status_code == 200
    assert guarded.request("GET", "/languages", data={"api_key": "secret"}).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(("name", "before"), [("Authorization", b"Bearer "), ("X-API-Key", b"")])
def test_a_key_with_other_letters_is_known_however_it_is_sent(pair, encoding, name, before):
    own = started(pair, keys=Keys.of(["schlüssel"]))
    try:
        client = TestClient(build_app(own))
        for key, status in (("schlüssel", 200), ("schlussel", 401), ("schlÿssel", 401)):
            headers = {name: before + key.encode(encoding)}
            assert client.get("/v1/models", headers=headers).status_code == status
    finally:
        own.engine.stop()


def test_whoever_wants_no_body_is_told_the_same(guarded):
    assert guarded.head("/health").status_code == guarded.head("/ready").status_code == 200
    assert guarded.head("/").status_code == guarded.get("/").status_code
    assert guarded.head("/v1/models").status_code == 401
    assert guarded.head("/v1/completions", headers={"Authorization": "Bearer other"}).status_code == 405


def test_keys_are_read_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n", encoding="utf-8")
    keys = Keys.read(str(file))
    assert [keys.allow(key) for key in ("one", "two", "# ours", "", None, "on")] == [True, True] + [False] * 4
    assert "one" not in repr(keys)
    file.write_text("# none\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no key"):
        Keys.read(str(file))
    with pytest.raises(InputError, match="cannot read"):
        Keys.read(str(tmp_path / "nothing"))


def test_large_bodies_are_refused(client):
    answer = client.post("/v1/completions", content=b" " * (1 << 20) + b"{}")
    assert answer.status_code == 413 and answer.headers["connection"] == "close"

    def pieces():
        for _ in range(40):
            yield b" " * 65536

    assert client.post("/translate", content=pieces()).status_code == 413


def test_long_headers_are_refused(client):
    answer = client.get("/health", headers={f"X-{at}": "a" * 100 for at in range(200)})
    assert answer.status_code == 431 and answer.headers["connection"] == "close"


def test_a_full_queue_says_when_to_come_back(pair):
    own = started(pair, Limits(rows=1, queue=2))
    client = TestClient(build_app(own))
    places = [own.engine.reserve() for _ in range(2)]
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "overloaded_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert client.post("/translate", json={"q": "w7", "source": "de", "target": "en"}).status_code == 429
    for place in places:
        own.engine.release(place)
    assert client.post("/v1/completions", json=ASK).status_code == 200
    own.engine.stop()


def test_too_many_tokens_that_wait_are_refused_as_a_full_queue_is(pair):
    own = started(pair, Limits(rows=1, queue_tokens=40))
    client = TestClient(build_app(own))
    with own.place() as place:
        place.tokens = 30
        assert client.post("/v1/completions", json=ASK).status_code == 200
        answer = client.post("/v1/completions", json={"prompt": ["w7 w8 w9"] * 6, "max_tokens": 2})
        assert answer.status_code == 503 and answer.json()["error"]["type"] == "overloaded_error"
        assert "30 tokens are waiting to be read, and at most 40 may" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
    # Where nobody else waits it is taken: it could not be taken at any other time.
    assert client.post("/v1/completions", json={"prompt": ["w7 w8 w9"] * 60, "max_tokens": 2}).status_code == 200
    assert is_idle(own) and own.engine.load.tokens == 0
    own.engine.stop()


def test_a_key_that_asks_for_more_than_it_may_is_told_when_to_come_back(pair):
    own = started(pair, keys=Keys.of(["one", "two"]), key_rate=2, key_requests=1)
    own.quotas.clock = lambda: now
    client, now = TestClient(build_app(own)), 100.0
    first, second = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))

    def ask(headers) -> int:
        return client.post("/v1/completions", json=ASK, headers=headers).status_code

    assert [ask(first) for _ in range(3)] == [200, 200, 429] and ask(second) == 200
    answer = client.post("/v1/completions", json=ASK, headers=first)
    assert answer.json()["error"]["code"] == "rate_limit_exceeded" and answer.headers["retry-after"] == "30"
    body = {"q": "w7", "source": "de", "target": "en", "api_key": "one"}
    assert client.post("/translate", json=body).status_code == 429
    assert client.get("/v1/models", headers=first).status_code == 200
    now += 30
    assert [client.post("/translate", json=body).status_code for _ in range(2)] == [200, 429]
    now += 1000
    with own.quotas.use(own.settings.keys.who("one")):
        assert ask(first) == 429 and ask(second) == 200
    # One of the two a minute was used here.
    assert [ask(first) for _ in range(2)] == [200, 429]
    own.engine.stop()


def test_limits_of_keys_need_keys():
    with pytest.raises(InputError, match="key_rate limits what one key may ask for, and there are none; give keys"):
        Settings(key_rate=5)
    with pytest.raises(InputError, match="key_requests is 0; allowed is 1 or more"):
        Settings(keys=Keys.of(["one"]), key_requests=0)


def test_draining_is_seen_and_nothing_new_is_taken(pair):
    own = started(pair)
    client = TestClient(build_app(own))
    own.engine.drain()
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "unavailable_error"
    own.engine.stop()


def test_a_dead_engine_is_no_secret(pair, monkeypatch):
    own = started(pair)
    client = TestClient(build_app(own))

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(own.engine, "step", killed)
    with own.place() as place:
        own.engine.cancel([])
        own.engine.submit(own.decoder.jobs("w7"), own.work(_ask()).rules, lambda events: None, place)
    wait_until(lambda: not own.engine.alive)
    assert client.get("/health").status_code == client.get("/ready").status_code == 503
    assert client.post("/v1/completions", json=ASK).status_code == 503


def _ask():
    from bild.serving.service import Ask

    return Ask(items=["w7"])


def test_a_row_that_fails_is_a_500_that_says_nothing(pair, monkeypatch, caplog):
    own = started(pair)
    client = TestClient(build_app(own))
    work = own.work

    def poisoned(ask):
        made = work(ask)
        object.__setattr__(made.jobs[0].request, "process", lambda prefix, logits: logits * float("nan"))
        return made

    monkeypatch.setattr(own, "work", poisoned)
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == 500 and answer.json()["error"]["message"] == "the text could not be decoded"
    stream = client.post("/v1/completions", json=ASK | {"stream": True})
    assert '"code": "decoding_failed"' in stream.text and stream.text.endswith("data: [DONE]\n\n")
    monkeypatch.setattr(own, "work", work)
    assert client.post("/v1/completions", json=ASK).status_code == 200
    wait_until(lambda: is_idle(own))
    own.engine.stop()


def test_a_mistake_of_ours_is_a_500_without_its_words(service, client, monkeypatch, caplog):
    text = " ".join(["w7", "is", "a", "secret"])

    def broken(ask):
        raise KeyError(text)

    monkeypatch.setattr(service, "work", broken)
    with caplog.at_level(logging.INFO, "bild.serving"):
        for path, body in (("/v1/completions", ASK), ("/translate", {"q": "w7", "source": "de", "target": "en"})):
            answer = client.post(path, json=body)
            assert answer.status_code == 500 and "secret" not in answer.text
    assert "KeyError" in caplog.text and "secret" not in caplog.text
    assert is_idle(service)


def test_a_request_takes_no_longer_than_it_may(pair):
    own = started(pair, timeout_s=1e-4)
    client = TestClient(build_app(own))
    answer = client.post("/v1/completions", json={"prompt": "w7", "max_tokens": 500})
    assert answer.status_code == 408 and answer.headers["x-should-retry"] == "false"
    stream = client.post("/v1/completions", json={"prompt": "w7", "max_tokens": 500, "stream": True})
    assert '"code": "timeout"' in stream.text
    wait_until(lambda: is_idle(own))
    own.engine.stop()


def test_the_log_has_a_line_a_request_and_no_text(client, caplog):
    with caplog.at_level(logging.INFO, "bild.serving"):
        answer = client.post(
            "/v1/completions?w9=w9", json={"prompt": "w7 w8", "max_tokens": 3}, headers={"X-Request-Id": "me-1"}
        )
        client.post("/v1/completions", json={"prompt": "w7 w8", "max_tokens": 3, "stream": True})
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["status"] for line in lines] == [200, 200]
    assert (lines[0]["id"], lines[0]["tokens_out"], lines[1]["tokens_out"]) == ("me-1", 3, 3)
    assert answer.headers["x-request-id"] == "me-1"
    assert not [word for word in ("w7", "w9", "w3") if word in caplog.text]


def test_a_client_s_mistake_is_no_error_of_ours(client, caplog):
    with caplog.at_level(logging.INFO, "bild.serving"):
        assert client.post("/v1/completions", json={"prompt": ""}).status_code == 400
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_ids_that_could_break_a_log_are_replaced(client):
    for id in ("a b", "x" * 200, "é"):
        assert client.get("/health", headers={"X-Request-Id": id.encode()}).headers["x-request-id"] != id


def test_pages_of_others_may_ask_only_if_allowed(pair, client):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/health", headers=ask).headers
    own = started(pair, cors=("https://a.example",), keys=Keys.of(["secret"]))
    allowed = TestClient(build_app(own))
    assert allowed.options("/v1/completions", headers=ask).headers["access-control-allow-origin"] == "https://a.example"
    other = allowed.options("/v1/completions", headers=ask | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-credentials" not in other.headers
    own.engine.stop()


SPECULATIVE = ["drafts_total", "draft_tokens_total", "accepted_tokens_total", "accepted_tokens_per_pos_total"]
BUCKETS = ["time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"]
BOARD = [
    *[f"spec_decode_num_{name}" for name in SPECULATIVE],
    *[f"{name}_bucket" for name in [*BUCKETS, "iteration_tokens_total"]],
    *["generation_tokens_total", "prompt_tokens_total", "request_success_total"],
    *["prefix_cache_queries_total", "prefix_cache_hits_total"],
    *["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"],
]


def test_boards_for_vllm_find_their_names(pair):
    own = started(pair, metrics_prefix="vllm")
    client = TestClient(build_app(own))
    stats = client.post("/v1/completions", json={"prompt": ["w7", "w8 w9"], "max_tokens": 9}).json()["bild"]["stats"]
    # A turn is counted when everybody has been told of it.
    done = f'vllm:generation_tokens_total{{engine="0",model_name="bild"}} {float(stats["num_tokens"])}'
    wait_until(lambda: done in client.get("/metrics").text)
    page = client.get("/metrics").text
    assert [name for name in BOARD if f"vllm:{name}" not in page] == []
    labels = '{engine="0",model_name="bild"}'
    assert f"vllm:spec_decode_num_draft_tokens_total{labels} {float(stats['num_draft_tokens'])}" in page
    assert f"vllm:spec_decode_num_accepted_tokens_total{labels} {float(stats['num_accepted_tokens'])}" in page
    assert f"vllm:generation_tokens_total{labels} {float(stats['num_tokens'])}" in page
    assert f"vllm:rollbacks_total{labels} {float(stats['num_rollbacks'])}" in page
    own.engine.stop()


def test_settings_are_the_safe_ones():
    settings = Settings()
    assert not settings.keys and settings.cors == () and settings.body_bytes == 1 << 20 and settings.receive_s == 10
