"""Every command and option as a Markdown page: ``python -m bild.cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from bild.data.markdown import row

HEAD = """# Commands

Every command and option, in the words of `bild COMMAND --help`. This page is made from the program by
`python -m bild.cli.reference > docs/cli.md`; a test fails where the two differ.

Results go to stdout, everything else to stderr. The exit code is 0, or 2 after a one-line error, or 130 after Ctrl-C.
"""
OTHERS = "Options"
"""Heading of options that name no panel."""
KINDS = {str: "TEXT", int: "INTEGER", float: "FLOAT", Path: "PATH"}


def reference() -> str:
    """The page."""
    # Not above: run as a program, this module should not import itself again through the commands.
    from bild.cli.app import app

    commands = [command.callback for command in app.registered_commands if command.callback is not None]
    return "\n".join([HEAD, *(line for command in commands for line in _command(command))])


def _command(command: Callable[..., Any]) -> Iterator[str]:
    hints = get_type_hints(command, include_extras=True)
    panels: dict[str, list[str]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, info = get_args(hints[name])
        panels.setdefault(info.rich_help_panel or OTHERS, []).append(_row(name, annotation, info, parameter.default))
    yield f"## bild {command.__name__.replace('_', '-')}\n"
    yield f"{inspect.getdoc(command)}\n"
    for panel, rows in panels.items():
        yield f"| {panel} | default | |\n| --- | --- | --- |"
        yield from rows
        yield ""


def _row(name: str, annotation: Any, info: OptionInfo | ArgumentInfo, default: Any) -> str:
    cells = [_names(name, annotation, info), _default(annotation, default), info.help or ""]
    return row(cells)


def _names(name: str, annotation: Any, info: OptionInfo | ArgumentInfo) -> str:
    kind, is_list = _kind(annotation)
    if isinstance(info, ArgumentInfo):
        return f"`{name.upper()}`" + (" …" if is_list else "")
    # In an annotation the first name given takes the place of a default.
    declared: list[Any] = [*([] if info.default is ... else [info.default]), *(info.param_decls or ())]
    names = [part for each in declared or [f"--{name.replace('_', '-')}"] for part in each.split("/")]
    return ", ".join(f"`{each}`" if kind is bool else f"`{each} {KINDS[kind]}`" for each in names)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of a value, and whether it may be given several times."""
    if isinstance(annotation, UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    inside = get_args(annotation)
    return (inside[0], True) if inside else (annotation, False)


def _default(annotation: Any, default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default == "" or default is False:
        return ""
    return "yes" if default is True else f"`{default}`"


if __name__ == "__main__":
    print(reference(), end="")
