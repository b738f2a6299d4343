"""Figure 9: texts with the large model's tokens marked and what was rolled back struck out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bild.data.examples import Example
from bild.generation.trace import Kind, Piece, trace
from bild.reproduction import table1
from bild.reproduction.choosing import need_dev
from bild.reproduction.result import Result
from bild.reproduction.rows import policy_name
from bild.reproduction.workspace import Row, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bild.generation import Result as Decoded

EXAMPLES = 4
"""Of each set."""
CANDIDATES = 200
COLUMNS = 110
COLOURS: dict[Kind, str] = {"small": "black", "large": "#c03d3e", "rolled_back": "#999999"}
SIZE = 8.5
"""Points; of a fixed-width face."""


@dataclass(frozen=True)
class Shown:
    """One text by the large model, the small one and both."""

    example: Example
    large: str
    small: str
    pieces: Sequence[Piece]
    large_share: float

    def lines(self) -> list[tuple[str, Sequence[Piece]]]:
        """What is shown of it, with its label."""
        plain = {"source": self.example.source, "reference": self.example.references[0],
                 "large": self.large, "small": self.small}  # fmt: skip
        return [*((label, [Piece(text, "small")]) for label, text in plain.items()), ("BiLD", self.pieces)]


def examples(workspace: Workspace, name: str, row: Row) -> list[Shown]:
    """The first test texts on which the models differ, those on which something was rolled back before the others."""
    decoder, inputs = workspace.decoder(row.variant), workspace.inputs
    members = list(inputs.test[name])[:CANDIDATES]
    sources = [inputs.prefix + example.source for example in members]
    by = {
        policy: decoder.generate(sources, policy, batch_size=32, **workspace.options)
        for policy in ("large", "small", row.policy)
    }
    rows = [item for item in zip(members, *by.values(), strict=True) if item[1].text != item[2].text]
    rows.sort(key=lambda item: item[3].stats.num_rollbacks == 0)
    return [_shown(workspace, row, *item) for item in rows[:EXAMPLES]]


def _shown(workspace: Workspace, row: Row, example: Example, large: Decoded, small: Decoded, both: Decoded) -> Shown:
    tokenizer = workspace.decoder(row.variant).tokenizer
    special = set() if tokenizer is None else set(tokenizer.all_special_tokens)
    pieces = [piece for piece in trace(both, tokenizer) if piece.text.strip() not in special]
    return Shown(example, large.text, small.text, pieces, both.stats.large_share or 0.0)


def compute(workspace: Workspace) -> Result:
    """A few test texts in which every token is coloured by its writer."""
    need_dev(workspace, "figure9")
    label = table1.best_row(workspace.inputs)
    chosen = {name: table1.chosen_row(workspace, name, label) for name in workspace.names}
    found = {name: examples(workspace, name, row) for name, row in chosen.items()}

    def draw(figure: Figure) -> None:
        _paint(figure, [line for shown in found.values() for one in shown for line in [*one.lines(), ("", ())]])

    about = (
        f"The policy of Table 1's row *{label}*. In BiLD's text **bold** tokens are the large model's, ~~struck~~ ones "
        "were drafted by the small model and rolled back, all others are the small model's. The first test texts on "
        "which the two models differ, those with a rollback first."
    )
    parts = [about]
    for name, shown in found.items():
        parts.append(f"## {name}: `{policy_name(chosen[name].policy)}`")
        parts += [markdown(one) for one in shown] or ["The two models write the same texts."]
    values = {name: [_values(one) for one in shown] for name, shown in found.items()}
    return Result("Figure 9: who writes what", parts, {"row": label, "sets": values}, draw)


def markdown(shown: Shown) -> str:
    """A list of what each wrote; marks as the legend says."""
    lines = [f"- {label}: {''.join(map(_marked, pieces)).strip()}" for label, pieces in shown.lines()]
    return "\n".join(lines) + f" ({shown.large_share:.0%} by the large model)"


def _marked(piece: Piece) -> str:
    bare = piece.text.strip()
    marks = {"large": "**", "rolled_back": "~~"}.get(piece.kind, "")
    escaped = bare.replace("*", "\\*").replace("~", "\\~")
    before, after = piece.text.partition(bare)[::2] if bare else (piece.text, "")
    return f"{before}{marks}{escaped}{marks}{after}" if bare else piece.text


def _values(shown: Shown) -> dict[str, Any]:
    return {
        "id": shown.example.id,
        "source": shown.example.source,
        "references": list(shown.example.references),
        "large": shown.large,
        "small": shown.small,
        "bild": [{"text": piece.text, "kind": piece.kind} for piece in shown.pieces],
    }


def _paint(figure: Figure, lines: Sequence[tuple[str, Sequence[Piece]]]) -> None:
    """Coloured text in a fixed-width face, wrapped."""
    placed = [[*_placed(pieces)] for _, pieces in lines]
    heights = [1 + max((row for row, *_ in own), default=0) for own in placed]
    width, height = 0.62 * SIZE / 72, 1.5 * SIZE / 72
    figure.set_layout_engine("none")
    total = max(1, sum(heights))
    figure.set_size_inches((COLUMNS + 14) * width, (total + 2) * height)
    style: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": SIZE, "va": "top"}
    top = 1
    for (label, _), own, tall in zip(lines, placed, heights, strict=True):
        y = 1 - top / (total + 2)
        figure.text(1 / (COLUMNS + 14), y, label, weight="bold", **style)
        for row, column, text, kind in own:
            x, here = (12 + column) / (COLUMNS + 14), 1 - (top + row) / (total + 2)
            struck = "".join(f"{letter}\u0336" for letter in text) if kind == "rolled_back" else text
            figure.text(x, here, struck, color=COLOURS.get(kind, COLOURS["small"]), **style)
        top += tall


def _placed(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, str, Kind]]:
    """Row, column, text and kind of every run of letters of one kind."""
    text = "".join(piece.text for piece in pieces)
    kinds = [piece.kind for piece in pieces for _ in piece.text]
    at = 0
    for row, line in enumerate(textwrap.wrap(text, COLUMNS, drop_whitespace=True)):
        at = text.index(line, at)
        start = 0
        for column in range(1, len(line) + 1):
            if column == len(line) or kinds[at + column] != kinds[at + start]:
                yield row, start, line[start:column], kinds[at + start]
                start = column
        at += len(line)
