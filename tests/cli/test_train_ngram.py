"""bild train-ngram, from texts to a drafter."""

from __future__ import annotations

import sys

import pytest

from bild.cli import main, pair_options
from bild.decoding import Ngrams
from bild.errors import InputError


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """``run(…) -> (code, stderr)`` on the bundled pair, loaded once."""
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capfd.readouterr().err

    return run


def test_counts_what_the_small_model_writes_and_drafts_from_it(run, bundled, sentences, tmp_path):
    texts, out = sentences[:6], tmp_path / "ngrams.safetensors"
    (tmp_path / "texts").write_text("\n".join([*texts, ""]), encoding="utf-8")
    code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", out, "--order", 2, "--batch-size", 3)
    assert code == 0 and err == f"6 texts counted; draft with --drafter backoff:file={out}\n"
    own = [result.token_ids for result in bundled.generate(texts, "small")]
    start = bundled.large.config.decoder_start_token_id
    expected = Ngrams(bundled.large.vocab_size, 2).add([start, *text] for text in own)
    counted = Ngrams.load(out)
    assert counted.order == 2 and counted._counts == expected._counts
    results = bundled.generate(texts, "exact:fallback_threshold=0.2", drafter=f"backoff:file={out}")
    assert [result.text for result in results] == [result.text for result in bundled.generate(texts, "large")]
    assert any("backoff" in result.writers for result in results)


def test_draws_follow_the_options(run, sentences, tmp_path):
    (tmp_path / "texts").write_text(sentences[0], encoding="utf-8")
    counts = {}
    for name, options in {"greedy": (), "hot": ("--do-sample", "--temperature", 1.5, "--seed", 3)}.items():
        code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", tmp_path / name, *options)
        assert code == 0, err
        counts[name] = Ngrams.load(tmp_path / name)._counts
    assert counts["greedy"] != counts["hot"]
    run("train-ngram", "-i", tmp_path / "texts", "--out", tmp_path / "short", "--max-new-tokens", 2)
    assert sum(Ngrams.load(tmp_path / "short")._counts[()].values()) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--order", 6), "order is 6; allowed is 1 to 5"),
        (("--order", 0), "order is 0; allowed is 1 to 5"),
        (("--writer", "me"), "writer is 'me'; allowed are small and large"),
        (("--batch-size", 0), "batch_size is 0; allowed is 1 or more"),
    ],
)
def test_wrong_options_are_one_line(run, tmp_path, options, says):
    (tmp_path / "texts").write_text("Ein Hund.", encoding="utf-8")
    code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", tmp_path / "out", *options)
    assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_nothing_to_count(run, tmp_path):
    (tmp_path / "texts").write_text("\n\n", encoding="utf-8")
    code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", tmp_path / "out")
    assert code == 2 and "holds no text to count in" in err


def test_a_line_that_is_no_text_is_told(run, tmp_path):
    (tmp_path / "texts").write_bytes(b"Ein Hund.\n\xff\n")
    code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", tmp_path / "out", "--max-new-tokens", 2)
    assert code == 0 and "line 2 is passed over: not UTF-8" in err and "1 texts counted" in err


def test_what_cannot_be_written_is_known_before_anything_is_counted(run, tmp_path, monkeypatch):
    (tmp_path / "texts").write_text("Ein Hund.", encoding="utf-8")
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: pytest.fail("loaded"))
    for out in (tmp_path, "/dev/null"):
        code, err = run("train-ngram", "-i", tmp_path / "texts", "--out", out)
        assert code == 2 and err == f"error: out is {out}, which cannot be written; name a file in a folder that can\n"


def test_counts_that_cannot_be_written_are_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        Ngrams(10, 2).save(tmp_path)
