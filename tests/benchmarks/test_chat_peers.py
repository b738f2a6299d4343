"""The benchmark of chat engines: what it makes of a GGUF file, and what it makes of the answers."""

from __future__ import annotations

import json

import chat_peers
import pytest
import torch
from chat_engines import ENGINES, OWN, Q8_0, Engine, Row, Workshop, _q8_0
from chat_workers.worker_loop import cut

from bild.errors import LoadError
from bild.evaluation import Output
from bild.evaluation.journal import Journal, Record
from bild.models import load_network
from tests.models.loading.test_gguf import CPU, write


def test_the_same_weights_in_eight_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "tiny.gguf")
    (tmp_path / "made").mkdir()
    _q8_0(str(file), tmp_path / "made")
    before, after = (
        load_network(place, dtype=torch.float32, device=CPU).state_dict() for place in (file, tmp_path / "made" / Q8_0)
    )
    assert before.keys() == after.keys()
    for key, weight in before.items():
        # Half a step of 127, whose size is kept in 16 bits.
        step = float(weight.abs().max()) / 127
        torch.testing.assert_close(after[key], weight, rtol=0, atol=0 if weight.ndim == 1 else 0.55 * step)
    assert (tmp_path / "made" / Q8_0).stat().st_size < 0.5 * file.stat().st_size


def journal(**seconds: float) -> Journal:
    """Two prompts: ten tokens in so many seconds, then ten in twice as many."""
    names = [name.replace("__", ":").replace("_", "-") for name in seconds]
    found = Journal(names)
    for name, cost in zip(names, seconds.values(), strict=True):
        for at in range(2):
            tokens = tuple(range(10)) if at or not name.startswith("slow") else (7,) * 10
            found.write(Record("chat", str(at), name, "", tokens, cost * (at + 1)))
    return found


def test_each_peer_counts_by_its_fastest_row():
    found = journal(bild__large=1.0, bild__exact=0.5, bild__bild=0.25, slow=2.0, slow__lookup5=1.0, fast=0.25)
    failed: dict[str, str] = {}
    table, line = chat_peers.compare(found, 2, failed)
    assert line["speedup"] == {"fast": 0.5, "slow": 2.0} and line["settings"]["slow"] == "slow:lookup5"
    assert (line["lossless"], line["bild"], line["settings"]["lossless"]) == (2.0, 4.0, "bild:exact")
    assert line["interval"]["slow"] == [2.0, 2.0] and failed == {}
    # The mean over prompts of tokens a second, as Spec-Bench has it: 10 and 5.
    assert table["bild:large"] == {"tokens_per_second": 7.5, "tokens": 20, "same_as_large": 1.0}
    assert table["slow"]["same_as_large"] == 0.5


def test_a_row_that_failed_is_named_and_left_out():
    found = journal(bild__large=1.0, bild__exact=0.5, peer=1.0)
    found.write(Record("chat", "1", "peer", error="no such operator"))
    failed: dict[str, str] = {}
    table, line = chat_peers.compare(found, 2, failed)
    assert failed == line["failed"] == {"peer": "no such operator"} and "peer" not in table
    assert line["speedup"] == {} and line["bild"] is None


def test_rows_are_named_after_their_mode():
    (q8,) = [each for each in ENGINES if each.peer == "llama.cpp-q8_0"]
    assert list(q8.rows()) == ["llama.cpp-q8_0", "llama.cpp-q8_0:lookup5", "llama.cpp-q8_0:lookup10"]
    assert list(Engine(OWN, OWN, "int8", ("large", "exact@ngram")).rows()) == ["bild:large", "bild:exact@ngram"]
    asked = []

    class Worker:
        def __call__(self, source):
            asked.append(json.loads(source))
            return Output("", [1])

    assert Row("x", Worker(), "lookup5")("[4, 5]").token_ids == [1] and asked == [{"ids": [4, 5], "mode": "lookup5"}]
    with pytest.raises(LoadError, match="reads GGUF files, and the model is none"):
        Workshop("/some/folder").model(q8)


def test_texts_end_alike_in_all_engines():
    settings = {"ends": [2, 3], "max_new_tokens": 4}
    assert cut([5, 6, 3, 9], settings) == [5, 6, 3] and cut([5, 6, 7, 8, 9], settings) == [5, 6, 7, 8]


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert chat_peers.texts_of(tmp_path / "a.txt") == ["one", "two"]
    rows = [("1", "qa", ["a", "b"]), ("2", "qa", ["c"]), ("3", "rag", ["d"])]
    lines = [json.dumps({"question_id": id, "category": group, "turns": turns}) for id, group, turns in rows]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert chat_peers.texts_of(tmp_path / "q.jsonl") == ["a", "d", "c"]
