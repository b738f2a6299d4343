"""The table of engines: each at its best, and ratios that say who is faster."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import engines_child
from engines_report import best, render, summary

from tests.networks import word_tokenizer


def result(engine: str, policy: str, task: str, value: float, bleu: float = 30.0, **more: object) -> dict[str, object]:
    setting = {"dtype": "int8", "lanes": 1, "threads": 1, **more}
    return {"engine": engine, "policy": policy, "task": task, "value": value, "bleu": bleu, **setting}


RESULTS = [
    result("bild", "large", "latency", 6.0),
    result("bild", "large", "latency", 5.0, threads=2),
    result("bild", "bild", "latency", 4.0, bleu=29.6),
    result("bild", "exact", "latency", 4.5),
    result("bild", "small", "latency", 2.0, bleu=29.0),
    result("bild", "large", "throughput", 100.0, batch=8),
    result("bild", "large", "throughput", 180.0, batch=64, lanes=2),
    result("bild", "bild", "throughput", 300.0, bleu=29.8, batch=32),
    result("ctranslate2", "large", "latency", 9.0),
    result("ctranslate2", "large", "throughput", 150.0, batch=32, lanes=2),
    result("ctranslate2", "large", "throughput", 999.0, batch=32, lanes=2, beams=4),
    result("bild", "large", "throughput", 333.0, bleu=31.0, batch=8, beams=4),
    result("bild", "large", "latency", 8.0, bleu=31.0, beams=4),
]


def test_each_engine_counts_at_its_best_and_a_row_that_lost_quality_does_not():
    assert best(RESULTS, "latency", engine="bild", policy="large")["threads"] == 2
    assert best(RESULTS, "throughput", engine="ctranslate2")["value"] == 150.0
    line = summary(RESULTS)
    # The policy "bild" loses 0.4 at batch 1, so "exact" stands for us there; it loses 0.2 in batches.
    assert line["latency"] == {"ctranslate2-int8": 2.0} and line["throughput"] == {"ctranslate2-int8": 2.0}
    assert line["large_alone"] == {"latency": 1.8, "throughput": 1.2}
    assert line["beams"] == {"throughput": 0.333}
    assert (line["bleu"], line["bleu_large"], line["bleu_small"]) == (29.6, 30.0, 29.0)


def test_every_machine_has_its_table(tmp_path):
    machine = {"cpu": "Some CPU", "flags": ["avx2"], "cores": 2, "commit": "abc", "date": "2026-01-01T00:00"}
    machine["versions"] = {"torch": "2.13", "transformers": "5.24"}
    values = {"machine": machine, "texts": {"test": 9}, "results": RESULTS, "summary": summary(RESULTS)}
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    page = render(sorted(tmp_path.glob("*.json")))
    assert page.count("### Some CPU") == 2
    assert "| bild `large` | int8 | 5.00 (2 threads) | 180 (2 lanes of 1, batch 64) | 30.0 |" in page
    assert "| ctranslate2 `large`, 4 beams | int8 |  | 999 (2 lanes of 1, batch 32) | 30.0 |" in page
    assert "| bild `large`, 4 beams | int8 | 8.00 (1 thread) | 333 (1 thread, batch 8) | 31.0 |" in page
    assert "The same with 4 beams: throughput 0.33 ×." in page
    assert "throughput: 2.00 × ctranslate2-int8" in page


def test_ctranslate2_reads_no_padding(tmp_path, monkeypatch):
    tokenizer = word_tokenizer().backend_tokenizer
    tokenizer.enable_padding(pad_token="<pad>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = []

    class Translator:
        def __init__(self, *_, **__):
            pass

        def translate_batch(self, tokens, **_):
            read.extend(tokens)
            return [SimpleNamespace(hypotheses=[each]) for each in tokens]

    monkeypatch.setitem(sys.modules, "ctranslate2", SimpleNamespace(Translator=Translator))
    settings = {"checkpoint": str(tmp_path), "model": "", "dtype": "int8", "lanes": 1, "threads": 1}
    decode = engines_child.load_ctranslate2(settings | {"max_new_tokens": 8})
    assert decode(["w3 w4 w5", "w7"], {"batch": 2}) == ["w3 w4 w5", "w7"]
    assert read == [["w3", "w4", "w5"], ["w7"]]
