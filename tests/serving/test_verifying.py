"""A pair on two machines: a real server on loopback, and devices that hold the small model only."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.testclient import TestClient

from bild import BigLittleDecoder, Policy
from bild.cli import main
from bild.decoding import Commit
from bild.edge.verification import Limits
from bild.edge.wire import CLOSE, DESCRIBE, OPEN, ROUNDS
from bild.errors import InputError, LoadError, VerifierError, VocabularyError
from bild.serving.server import Server, listen
from bild.serving.settings import Keys, Settings
from bild.serving.verifying import VerifyingService, build_verifying_app
from tests.networks import build, perturbed, word_tokenizer
from tests.serving.conftest import wait_until

TEXTS = ["w7 w8 w9", "w3", "w20 w21 w22 w23 w5 w6", "w11 w12"]
DRAWS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 5}


def pair(kind: str = "t5") -> BigLittleDecoder:
    large = build(kind, seed=5, dtype=torch.float32)
    policy = Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0)
    decoder = BigLittleDecoder(large, perturbed(large, 0.2), word_tokenizer(), policy=policy)
    decoder.generation_config.max_new_tokens = 12
    return decoder


def service(kind: str = "t5", limits: Limits | None = None, seed: int = 5, **settings) -> VerifyingService:
    large = build(kind, seed=seed, dtype=torch.float32)
    decoder = BigLittleDecoder(large, tokenizer=word_tokenizer(), drafter="ngram")
    decoder.generation_config.max_new_tokens = 12
    return VerifyingService(decoder, Limits() if limits is None else limits, Settings(**settings))


class Running:
    """A verify-server in a thread."""

    def __init__(self, own: VerifyingService, port: int = 0) -> None:
        self.service = own
        own.engine.start()
        self.server = Server(own, 0, build_verifying_app(own))
        self.socket = listen("127.0.0.1", port)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.leave()
        self.server.force_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    own = Running(service())
    yield own
    own.stop()


@pytest.fixture(scope="module")
def near() -> BigLittleDecoder:
    return pair()


def device(url: str, kind: str = "t5", **options) -> BigLittleDecoder:
    large = build(kind, seed=5, dtype=torch.float32)
    policy = Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0)
    return BigLittleDecoder(
        small=perturbed(large, 0.2), tokenizer=word_tokenizer(), policy=policy, verifier=url, **options
    )


def facts(rounds: list[Commit]) -> list[tuple]:
    return [(c.tokens, c.writers, c.draft, c.accepted, c.reason, c.finish_reason) for c in rounds]


def same(far: BigLittleDecoder, near: BigLittleDecoder, policy: str, **options) -> None:
    ours, theirs = far.generate(TEXTS, policy, **options), near.generate(TEXTS, policy, **options)
    assert [result.text for result in ours] == [result.text for result in theirs]
    assert [facts(result.rounds) for result in ours] == [facts(result.rounds) for result in theirs]


@pytest.fixture(scope="module")
def far(running) -> BigLittleDecoder:
    return device(running.url)


# Every rule with every way of drawing is looked at in tests/edge, on toys.
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("bild", {"batch_size": 3, "repetition_penalty": 1.3}),
        ("bild:metric=margin", {}),
        ("exact", DRAWS | {"batch_size": 2}),
        ("speculative_sampling:window=3", DRAWS),
        ("large", {}),
    ],
    ids=str,
)
def test_elsewhere_is_here(far, near, policy, options):
    same(far, near, policy, **options)


def test_elsewhere_is_here_for_decoders_with_other_drafters_and_a_middle_model():
    running = Running(service("llama"))
    try:
        near = pair("llama")
        far = device(running.url, "llama")
        for policy, options in (("exact", {}), ("speculative_sampling:window=3", DRAWS)):
            same(far, near, policy, **options)
            same(far, near, policy, drafter="first:ngram,small", **options)
        chain = device(running.url, "llama", middle="small", drafter="ngram")
        assert [r.text for r in chain.generate(TEXTS, "exact")] == [r.text for r in near.generate(TEXTS, "exact")]
    finally:
        running.stop()


def test_nothing_of_the_large_model_is_at_the_device(running, near):
    far = device(running.url)
    far.generate(TEXTS[0], "exact")
    with pytest.raises(InputError, match=f"the large model is at {running.url}, and this needs it here"):
        far.large.network  # noqa: B018
    assert far.models[1].network is not None and far.dtype == "float32" and far.traffic.requests >= 3
    # What texts end with, how long they may be and how they begin the server says.
    assert far.generation_config.max_new_tokens == 12
    assert far.large.vocab_size == near.large.vocab_size and near.traffic is None


def test_many_devices_at_once_share_passes(running, near):
    expected = [result.text for result in near.generate(TEXTS, "exact")]
    devices = [device(running.url) for _ in range(3)]
    before = running.service.board.page().decode()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda far: [result.text for result in far.generate(TEXTS, "exact")], devices))
    assert found == [expected] * 3
    wait_until(lambda: running.service.engine.load.sessions == 0)
    passes, rounds = (count(running, name) - number(before, name) for name in ("pass_seconds_count", "rounds_total"))
    assert rounds > 20 and passes <= rounds


def number(page: str, name: str) -> float:
    return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(f"bild:verifier_{name} ")))


def count(running: Running, name: str) -> float:
    return number(running.service.board.page().decode(), name)


def test_a_server_that_is_killed_in_the_middle_of_a_text(near):
    running = Running(service())
    far = device(running.url, verifier_timeout_s=2)
    far._elsewhere.channel.sleep = lambda seconds: None
    expected = near.generate(TEXTS[0], "exact")[0].text
    pieces = far.stream(TEXTS[0], "exact")
    first = next(pieces)
    running.stop()
    with pytest.raises(VerifierError, match=r"cannot be reached.*start it with bild verify-server"):
        list(pieces)
    assert expected.startswith(first)
    # Another one at the same place is used without more ado, in the middle of a text too.
    again = Running(service(), running.port)
    pieces = far.stream(TEXTS[0], "exact")
    begun = next(pieces)
    again.service.engine.close(list(again.service.engine._sessions))
    assert begun + "".join(pieces) == expected
    again.stop()


def test_a_verifier_that_comes_back_with_another_model_is_refused():
    """Its vocabulary is the same; the text would be one of two models."""
    running = Running(service())
    far = device(running.url, verifier_timeout_s=2)
    far._elsewhere.channel.sleep = lambda seconds: None
    pieces = far.stream(TEXTS[0], "exact")
    next(pieces)
    running.stop()
    again = Running(service(seed=6), running.port)
    for rest in (pieces, far.stream(TEXTS[1], "exact")):
        with pytest.raises(VerifierError, match="holds another model than the one this device agreed with; load"):
            list(rest)
    # A device that agrees with it now is served.
    assert device(again.url).generate(TEXTS[1], "exact")
    again.stop()


def test_a_verifier_of_another_pair_is_refused(running):
    large = build("t5", seed=5, dtype=torch.float32)
    words = [f"x{id}" for id in range(40)]
    with pytest.raises(VocabularyError, match="vocabulary is another one than the verifier's"):
        BigLittleDecoder(small=large, tokenizer=word_tokenizer(words), verifier=running.url)
    with pytest.raises(LoadError, match="decoder-only"):
        BigLittleDecoder(small=build("llama", dtype=torch.float32), tokenizer=word_tokenizer(), verifier=running.url)
    with pytest.raises(VocabularyError, match="there are not two tokenizers"):
        BigLittleDecoder(small=build("t5", vocab_size=44, dtype=torch.float32), verifier=running.url)


def test_a_timeout_is_for_a_verifier(monkeypatch, capsys):
    said = "verifier_timeout_s is 5, and there is no verifier to wait for; name one with verifier, or leave it out"
    with pytest.raises(InputError, match=said):
        BigLittleDecoder(build("t5"), verifier_timeout_s=5)
    monkeypatch.setattr(sys, "argv", ["bild", "generate", "--verifier-timeout", "5", "Guten Morgen."])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and said in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_the_server_itself_refuses_another_vocabulary_and_what_is_no_request():
    with TestClient(build_verifying_app(service())) as client:
        other = client.post(OPEN, json={"vocabulary": "0" * 32, "sessions": []})
        assert other.status_code == 409 and other.json()["error"]["code"] == "other_vocabulary"
        assert client.get(DESCRIBE).json()["protocol"] == 1
        for path, body, says in (
            (OPEN, [], "has no list sessions"),
            (OPEN, {"sessions": [{}]}, "vocab_size"),
            (ROUNDS, {"rounds": [1]}, "a round is int"),
            (ROUNDS, {"rounds": [{"session": "a", "at": 1, "draft": []}] * 2}, "named twice"),
            (ROUNDS, {"rounds": [None] * 2000}, "2000 members"),
            (CLOSE, {}, "no list sessions"),
        ):
            refused = client.post(path, json=body)
            assert refused.status_code == 400 and says in refused.json()["error"]["message"], path
        assert client.post(CLOSE, content=b"{").status_code == 400
        assert client.post(CLOSE, json={"sessions": ["a", 1]}).json() == {"closed": 0}
        assert client.post(ROUNDS, json={"rounds": []}).json() == {"answers": []}
        assert b"bild:verifier_sessions 0.0" in client.get("/metrics").content
        assert client.get("/ready").status_code == 200


OPENING = {
    "source": [7, 8], "prompt": [0], "text": [], "acceptance": {"rule": "exact_match"}, "options": {},
    "max_new_tokens": 5, "vocab_size": 40, "seed": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": []}, "reads a source, and the text has none"),
        ({"acceptance": {"rule": "within_distance", "threshold": 1, "metric": "js"}}, "needs more of the small model"),
        ({"acceptance": {"rule": "within_distance", "threshold": -1}}, "rollback_threshold is -1"),
        ({"acceptance": {"rule": "eval"}}, "rule is 'eval'"),
        ({"options": {"top_k": -1, "do_sample": True}, "seed": 1}, "top_k is -1"),
        ({"options": {"bad_words_ids": 3}}, "options hold something"),
        ({"options": {"nope": 3}}, "options hold something"),
        ({"options": {"do_sample": True}}, "has no seed"),
        ({"options": {"bad_words_ids": [[99]]}}, "token id 99"),
        ({"options": {"sequence_bias": [[[3], 10**400]]}}, "sequence_bias is"),
        ({"source": [7, 10**30]}, "allowed is 0 to 39"),
    ],
    ids=str,
)
def test_openings_that_cannot_be_kept(changes, says):
    with TestClient(build_verifying_app(service())) as client:
        refused = client.post(OPEN, json={"sessions": [OPENING | changes]})
        assert refused.status_code == 400 and says in refused.json()["error"]["message"]


def test_keys_are_asked_for(monkeypatch):
    running = Running(service(keys=Keys.of(["sesame"])))
    try:
        with pytest.raises(VerifierError, match="asks for a key"):
            device(running.url)
        monkeypatch.setenv("BILD_API_KEY", "sesame")
        assert device(running.url).generate(TEXTS[0], "exact")[0].text
    finally:
        running.stop()


def test_what_a_device_cannot_be_asked_for(running, far, near):
    for policy in ("bild:metric=kl", "ensemble", "adaptive"):
        with pytest.raises(InputError, match="needs more of the small model"):
            far.generate(TEXTS[0], policy)
    with pytest.raises(InputError, match="reward=overlap compares distributions"):
        far.generate(TEXTS[0], "speculative_sampling", drafter="bandit:reward=overlap:ngram,small", **DRAWS)
    network = near.large.network
    for wrong, says in (
        ({"large": network, "small": network}, "leave one of them out"),
        ({"small": "exit:1"}, "a part of the large model, which is elsewhere"),
        ({}, "needs a small model"),
        ({"small": network, "middle": network}, "middle can be 'small'"),
    ):
        with pytest.raises(InputError, match=says):
            BigLittleDecoder(**wrong, verifier=running.url)
    with pytest.raises(InputError, match="there is no large model"):
        BigLittleDecoder(small=network)
    assert far.generate(TEXTS[0], "small")[0].text == near.generate(TEXTS[0], "small")[0].text


def test_a_folder_without_a_large_model_is_enough(running, near, tmp_path: object):
    near.save_pretrained(tmp_path)
    folder = tmp_path / "small"
    far = BigLittleDecoder.from_pretrained(small=folder, verifier=running.url, dtype="float32", runtime="eager")
    assert far.generate(TEXTS[2], "exact")[0].text == near.generate(TEXTS[2], "exact")[0].text
    (tmp_path / "large" / "model.safetensors").unlink()
    whole = BigLittleDecoder.from_pretrained(tmp_path, verifier=running.url, dtype="float32", runtime="eager")
    assert whole.policy == near.policy
    assert whole.generate(TEXTS)[2].text == near.generate(TEXTS)[2].text
    with pytest.raises(InputError, match="large is named, and the large model is where verifier says"):
        BigLittleDecoder.from_pretrained(large=folder, small=folder, verifier=running.url)
    with pytest.raises(InputError, match="'exit:1', a part of the large model"):
        BigLittleDecoder.from_pretrained(small="exit:1", verifier=running.url)
