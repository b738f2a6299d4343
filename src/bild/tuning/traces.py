"""What both models say after every prefix that some policy may reach.

A greedy policy of two thresholds knows four things of a prefix: the small model's token and its confidence in it,
the large model's token and its distance to the small one's. They do not depend on the thresholds, so they are
computed once and shared by all policies: where policies part, a new branch is read; all else is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from bild.data.files import whole_lines
from bild.decoding import Greedy, LowConfidence, ModelDrafter, Policy, Row, WithinDistance
from bild.decoding.rounds import verify

if TYPE_CHECKING:
    from bild.decoding import FinishReason
    from bild.decoding.distances import MetricName
    from bild.decoding.hand_over import MeasureName
    from bild.generation import BigLittleDecoder
    from bild.generation.jobs import Job

BATCH = 64
"""Rows read together."""
BRANCH = 32
"""Tokens the small model writes ahead; longer texts are continued when they are needed."""


@dataclass(slots=True)
class Node:
    """A prefix of a text, and what may follow it."""

    tokens: tuple[int, ...] = ()
    """Written so far, without the prompt."""
    finish: FinishReason | None = None
    """Why the text ends here, if it does."""
    children: dict[int, Node] = field(default_factory=dict)
    draft: int | None = None
    """The small model's next token; None: nobody has read this prefix yet."""
    confidence: float = 0.0
    own: int = 0
    """The large model's next token."""
    distance: float = 0.0
    """``d(p_S, p_L)`` of the small model's token."""


@dataclass
class Tree:
    """All prefixes of one text that have been asked for."""

    job: Job
    root: Node = field(default_factory=Node)

    def child(self, node: Node, token: int) -> Node:
        """The prefix with one more token."""
        known = node.children.get(token)
        if known is None:
            row = self.row(node)
            row.tokens.append(token)
            known = node.children[token] = Node((*node.tokens, token), row.ended())
        return known

    def row(self, node: Node) -> Row:
        """A row of the loop that has come this far."""
        row = Row(0, self.job.request)
        row.tokens += node.tokens
        row.committed = len(row.tokens)
        return row


class Branch(NamedTuple):
    """A prefix, the small model's continuation, and what both models say along it."""

    text: int
    prefix: Sequence[int]
    draft: list[int]
    confidences: list[float]
    own: list[int]
    distances: list[float]


class Reader:
    """Reads prefixes in batches, with both models.

    Args:
        decoder: the pair.
        trees: of the texts.
        file: JSON lines that everything read is appended to, and that is read first; None: nothing is kept.
        measure: of confidence.
        metric: of distance.
        batch_size: rows read together, 1…
    """

    def __init__(
        self,
        decoder: BigLittleDecoder,
        trees: Sequence[Tree],
        file: Path | None = None,
        *,
        measure: MeasureName = "max_probability",
        metric: MetricName = "nll",
        batch_size: int = BATCH,
    ) -> None:
        self.decoder, self.trees, self.file = decoder, trees, file
        # Never unsure and never rolled back: a draft is the whole branch, the verdict what large says of it.
        self.policy = Policy(
            hand_over=LowConfidence(0.0, measure),
            acceptance=WithinDistance(float("inf"), metric),
            max_draft_tokens=BRANCH,
        )
        self.batch_size = batch_size if decoder.batches else 1
        if file is not None and file.exists():
            self._load(file)

    def read(self, wanted: Iterable[tuple[int, Node]], progress: Callable[[int], None] | None = None) -> None:
        """Fill in these nodes and those along the small model's own continuation.

        Args:
            wanted: nodes that nobody has read, each once, with the index of their tree.
            progress: told the number of nodes after every batch.
        """
        # Rows of one length need no padding.
        ordered = sorted(wanted, key=lambda item: (len(self.trees[item[0]].job.source), len(item[1].tokens)))
        with torch.inference_mode():
            for at in range(0, len(ordered), self.batch_size):
                batch = ordered[at : at + self.batch_size]
                self._read(batch)
                if progress is not None:
                    progress(len(batch))

    def _read(self, batch: Sequence[tuple[int, Node]]) -> None:
        sources = [self.trees[index].job.source for index, _ in batch]
        rows = [self.trees[index].row(node) for index, node in batch]
        large = self.decoder.large.start(sources)
        drafts = ModelDrafter(self.decoder.small.beside(large, sources), self.policy).draft(rows)
        verdicts = verify(large, rows, drafts, self.policy.acceptance, Greedy())
        branches = [
            Branch(index, node.tokens, draft.tokens, draft.confidences, list(verdict.own), list(verdict.distances))
            for (index, node), draft, verdict in zip(batch, drafts, verdicts, strict=True)
        ]
        for branch in branches:
            self._grow(branch)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(branch) + "\n" for branch in branches)

    def _grow(self, branch: Branch) -> None:
        tree = self.trees[branch.text]
        node = tree.root
        for token in branch.prefix:
            node = tree.child(node, token)
        for token, *rest in zip(branch.draft, branch.confidences, branch.own, branch.distances, strict=True):
            node.draft = token
            node.confidence, node.own, node.distance = rest
            node = tree.child(node, token)

    def _load(self, file: Path) -> None:
        for line in whole_lines(file):
            self._grow(Branch(*json.loads(line)))
