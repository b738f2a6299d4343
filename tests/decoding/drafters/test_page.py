"""The page about drafters runs."""

from __future__ import annotations

import re
from pathlib import Path

from bild import BigLittleDecoder

PAGE = (Path(__file__).parents[3] / "docs" / "drafters.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_example_runs_and_the_new_drafter_writes(bundled, monkeypatch, capsys):
    monkeypatch.setattr(BigLittleDecoder, "from_pretrained", lambda *_, **__: bundled)
    tour, own = blocks()
    scope: dict = {}
    exec(tour, {})
    shown = capsys.readouterr().out.splitlines()
    assert len({line.partition(" ")[2].partition("{")[0] for line in shown}) == 1 and len(shown) == 4
    exec(own, scope)
    result = scope["result"]
    assert result.token_ids == bundled.generate(scope["source"], "large")[0].token_ids
    assert result.writers[:4] == ["memory"] * 4 and result.stats.num_tokens_by_writer["memory"] == 4
    assert "tennis" not in result.text and "large" in result.writers
    assert own.count("\n") < 60
