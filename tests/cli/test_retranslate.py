"""bild retranslate, from the command line."""

from __future__ import annotations

import json
import sys

import pytest

from bild.cli import main, pair_options
from bild.generation.retranslate import retranslate, revealed

TEXT = "Ein Hund läuft durch den hohen Schnee."


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """``run(…) -> (code, stdout, stderr)`` on the bundled pair, loaded once."""
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", "retranslate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return (int(stopped.value.code or 0), *capfd.readouterr())

    return run


def test_every_option_reaches_the_loop(run, bundled, tmp_path):
    (tmp_path / "in").write_text(f"{TEXT}\n\n", encoding="utf-8")

    def expected(words: int = 1, **options) -> list[str]:
        return [each.text for each in retranslate(bundled, revealed(TEXT, words), **options).revisions]

    assert run("-i", tmp_path / "in") == (0, f"{expected()[-1]}\n\n", "")
    assert run("--revisions", TEXT)[1].splitlines() == expected()
    assert run("--revisions", "--words", 3, "--mask", 0, TEXT)[1].splitlines() == expected(3, mask=0)
    code, out, err = run("--beta", 0.9, "--max-new-tokens", 6, "--json", "--stats", TEXT)
    facts, live = json.loads(out), retranslate(bundled, revealed(TEXT), beta=0.9, max_new_tokens=6)
    assert (facts["large_passes"], facts["flicker"]) == (live.num_large_steps, live.flicker)
    assert facts["shown"] == [each.text for each in live.revisions] and facts["revisions"] == 7
    assert code == 0 and f"7 revisions · {live.num_large_steps} large passes" in err
    assert run("--json", "--beta", 0, TEXT)[1] != run("--json", "--beta", 0.9, TEXT)[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--beta", 1), "beta is 1.0"),
        (("--mask", -1), "mask is -1"),
        (("--words", 0), "words is 0; allowed is 1 or more"),
        (("--max-new-tokens", 0), "error: max_new_tokens is 0"),
    ],
)
def test_wrong_options_are_one_line(run, options, says):
    code, out, err = run(*options, TEXT)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_a_line_that_cannot_be_decoded_costs_no_other(run, tmp_path):
    (tmp_path / "in").write_bytes(b" Ein Hund.\n\xff\nZwei Hunde.\n")
    code, out, err = run("-i", tmp_path / "in")
    first, broken, third = out.splitlines()
    assert code == 2 and first and not broken and third
    assert err == "error: line 2: not UTF-8 (byte 0xff at 0); convert the file\n"
