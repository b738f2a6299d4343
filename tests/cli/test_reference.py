"""The page of commands is the program's own."""

from __future__ import annotations

from pathlib import Path

from bild.cli.app import app
from bild.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_of_commands_is_up_to_date():
    says = "docs/cli.md is stale; run: python -m bild.cli.reference > docs/cli.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), says


def test_the_page_holds_every_command_with_its_options_and_their_defaults():
    page = reference()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    names = [command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert headings == [f"## bild {name}" for name in names]
    generate = page.partition("## bild generate")[2].partition("## bild ")[0]
    assert "| `TEXTS` … |  | Texts to decode. |" in generate
    assert "| `--input TEXT`, `-i TEXT` |  |" in generate
    assert "| `--batch-size INTEGER` | `1` | Texts decoded together, 1… |" in generate
    assert "| `--chat`, `--no-chat` |  |" in generate
    assert "| `--data TEXT` | required |" in page.partition("## bild evaluate")[2]
    assert "| `--memory`, `--no-memory` | yes |" in page
