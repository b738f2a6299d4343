"""Figure 2: how many of the small model's tokens must the large one replace? An oracle: both run at every step."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bild.reproduction import plots
from bild.reproduction.inputs import Variant
from bild.reproduction.result import Result, table
from bild.reproduction.workspace import Workspace
from bild.tuning.simulation import Found, Simulator
from bild.tuning.traces import Node, Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIKELIHOODS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.01)
"""Thresholds; at 0 the small model writes alone, above 1 the large one does."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """One text by the oracle."""

    tokens: tuple[int, ...]
    num_replaced: int
    """Tokens taken from the large model, whether it would have written the same or not."""
    num_changed: int
    """Those of them that are not the small model's."""


def replace_unlikely(tree: Tree, likelihood: float) -> Generator[Node, None, Replaced]:
    """Write with the small model; take the large model's token where it finds the small one's less likely than this.

    Args:
        tree: what is known of the text, with nll as the distance.
        likelihood: 0…1; 0 replaces nothing, above 1 everything.

    Yields:
        Prefixes that nobody has read.
    """
    node, replaced, changed = tree.root, 0, 0
    while node.finish is None:
        if node.draft is None:
            yield node
        assert node.draft is not None
        unlikely = math.exp(-node.distance) < likelihood
        replaced += unlikely
        changed += unlikely and node.own != node.draft
        node = tree.child(node, node.own if unlikely else node.draft)
    return Replaced(node.tokens, replaced, changed)


def look_up(tree: Tree, likelihoods: Sequence[float], found: Found) -> Generator[Node, None, None]:
    """What each threshold makes of one text."""
    for number, likelihood in enumerate(likelihoods):
        found(number, (yield from replace_unlikely(tree, likelihood)))


@dataclass(frozen=True)
class Level:
    """A threshold on one set."""

    likelihood: float
    quality: float
    replaced: float
    """Tokens taken from the large model / all tokens."""
    changed: float
    """Tokens that this changed / all tokens."""


def levels(workspace: Workspace, variant: Variant, name: str) -> list[Level]:
    """Every threshold on one test set."""
    search = workspace.search(variant, name)
    known = search.simulator
    oracle = Simulator(known.trees, known.reader, look_up)
    everything = range(len(known.trees))
    oracle.run(LIKELIHOODS, everything)
    found = []
    for likelihood in LIKELIHOODS:
        texts = [oracle.outcomes[likelihood][index] for index in everything]
        quality = search.texts.quality({index: text.tokens for index, text in enumerate(texts)})[name]
        tokens = sum(len(text.tokens) for text in texts)
        counts = (sum(getattr(text, field) for text in texts) for field in ("num_replaced", "num_changed"))
        found.append(Level(likelihood, quality, *(count / tokens for count in counts)))
    return found


def compute(workspace: Workspace) -> Result:
    """Quality over the share of tokens the large model replaces, by threshold, and a curve a set."""
    inputs = workspace.inputs
    found = {name: {v.label: levels(workspace, v, name) for v in inputs.variants} for name in workspace.names}
    large = {name: workspace.quality_of_large(inputs.variants[0], name) for name in workspace.names}

    def draw(figure: Figure) -> None:
        for axes, name in zip(plots.panels(figure, workspace.names), workspace.names, strict=True):
            for label, own in found[name].items():
                shares, quality = [100 * level.replaced for level in own], [level.quality for level in own]
                axes.plot(shares, quality, marker="o", markersize=3, color=plots.COLOURS[label], label=label)
            axes.axhline(large[name], color="black", linestyle="--", linewidth=0.8, label="large alone")
            axes.set_xlabel("tokens taken from the large model, %")
            axes.set_ylabel(inputs.label)
            axes.legend(frameon=False, fontsize=8)

    about = (
        "An oracle, not a way to decode: both models run at every step, and the large model's token stands wherever it "
        "finds the small model's less likely than a threshold. Shares are of all tokens written; *changed* counts only "
        "tokens that are not the small model's anyway. Looked up on the test sets, greedy. In the paper about 20 % "
        "suffice to match the large model."
    )
    parts = [about, *(_said(name, label, own, large[name]) for name, by in found.items() for label, own in by.items())]
    values: dict[str, Any] = {
        name: {"large": large[name], **{label: [_values(level) for level in own] for label, own in by.items()}}
        for name, by in found.items()
    }
    return Result("Figure 2: an oracle that replaces unlikely tokens", parts, {"sets": values}, draw)


def _said(name: str, label: str, own: list[Level], large: float) -> str:
    enough = next((level for level in own if level.quality >= large), None)
    said = "At no threshold is the large model's quality reached."
    if enough is not None:
        said = f"The large model's quality ({large:.2f}) is reached with {enough.replaced:.1%} of the tokens replaced."
    rows = [
        [f"{level.likelihood:g}", f"{level.replaced:.1%}", f"{level.changed:.1%}", f"{level.quality:.2f}"]
        for level in own
    ]
    return f"## {name}, {label}\n\n{said}\n\n" + table(["likelihood below", "replaced", "changed", "quality"], rows)


def _values(level: Level) -> dict[str, float]:
    return {"likelihood": level.likelihood, "quality": level.quality,
            "replaced": level.replaced, "changed": level.changed}  # fmt: skip
