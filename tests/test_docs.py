"""What README and docs show can be typed: code compiles, commands parse, files and links are there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from bild import Policy
from bild.cli.app import app
from bild.evaluation import parse_methods

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> Iterator[tuple[Path, str]]:
    """The pieces of code on all pages; without a language they are a terminal's."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                yield page, text


def shown(prefix: str) -> list[str]:
    """Every line of a terminal that begins so, whole and without its comment."""
    texts = [text.replace("\\\n", " ") for _, text in blocks("", "sh", "bash")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    found = [line for line in lines if line.startswith(prefix)]
    return [shlex.join(shlex.split(line, comments=True)) for line in found]


PYTHON = [pytest.param(text, id=f"{page.stem}-{number}") for number, (page, text) in enumerate(blocks("python"))]
COMMANDS = shown("bild ")
PROGRAM = get_command(app)


def test_finds_what_the_pages_show():
    assert len(PYTHON) >= 7 and len(COMMANDS) >= 30
    assert "bild warmup" in COMMANDS and len(shown("make ")) >= 4


@pytest.mark.parametrize("text", PYTHON)
def test_python_compiles_and_its_imports_are_there(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []
        # Names and functions of bild itself that are called as bild.Name.name.
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("bild."):
            value = importlib.import_module("bild")
            for name in ast.unparse(node).split(".")[1:]:
                value = getattr(value, name)


def test_the_readme_s_python_runs(capsys):
    (text,) = [text for page, text in blocks("python") if page.name == "README.md"]
    exec(text, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("What time is it?") and "by the large model" in lines[1]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_a_command_parses(line):
    _, name, *arguments = shlex.split(line)
    command = PROGRAM.commands[name]
    # A line that is cut short with … names what was said before.
    said = [each for each in arguments if each != "…"]
    with command.make_context(name, said, resilient_parsing=len(said) < len(arguments)) as context:
        given = context.params
    if given.get("methods"):
        assert parse_methods(given["methods"])
    if given.get("policy"):
        assert Policy().parse(given["policy"])


def test_a_command_with_an_option_that_is_gone_does_not_parse():
    with pytest.raises(Exception, match="No such option: --gamma"):
        PROGRAM.commands["generate"].make_context("generate", ["--gamma", "4"])


def test_programs_and_targets_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in shown("make "):
        assert re.search(rf"^{shlex.split(line)[1]}:", makefile, re.MULTILINE), line
    for line in shown("python "):
        assert (ROOT / shlex.split(line)[1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    places = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [place for place in places if not (page.parent / place).exists()] == []


def test_files_of_the_readme_s_drawing_are_there():
    (drawing,) = [text for page, text in blocks("") if page.name == "README.md" and text.startswith("src/bild/\n")]
    known = {file.name for place in ("src", "tests", "benchmarks") for file in (ROOT / place).rglob("*.py")}
    assert [name for name in re.findall(r"[\w]+\.py", drawing) if name not in known] == []
    rooms = re.findall(r"^  (\w+)/", drawing, re.MULTILINE)
    assert len(rooms) >= 8 and [room for room in rooms if not (ROOT / "src" / "bild" / room).is_dir()] == []
