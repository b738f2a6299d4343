"""What both models say after every prefix that some policy may reach.

A greedy policy of two thresholds knows four things of a prefix: the small model's token and its confidence in it,
the large model's token and its distance to the small one's. They do not depend on the thresholds, so they are
computed once and shared by all policies: where policies part, a new branch is read; all else is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from bild.data.files import whole_lines
from bild.data.json_text import from_json, is_count, is_number
from bild.decoding import LocalVerifier, LowConfidence, ModelDrafter, Policy, Row, Rules, WithinDistance
from bild.decoding.acceptance import Reading
from bild.decoding.common import common
from bild.decoding.draft import Work
from bild.decoding.grouping import Group
from bild.decoding.scorer import Scorer
from bild.decoding.verdict import Verdict
from bild.errors import writing

if TYPE_CHECKING:
    from bild.decoding import FinishReason
    from bild.decoding.distances import MetricName
    from bild.decoding.hand_over import MeasureName
    from bild.engine import Job
    from bild.generation import BigLittleDecoder

BATCH = 32
"""Texts read together."""
BRANCH = 12
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
    surprise: float | None = None
    """``−log p_L`` of the large model's next token, in nats; None where an earlier version has read it."""


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

    def surprise(self, tokens: Sequence[int]) -> float | None:
        """``−log p_L`` of a text, in nats, from what has been read along it; None where that does not say.

        Read with the distance ``"nll"``, as by default: a token is the small model's or the large one's.
        """
        node, total = self.root, 0.0
        for token in tokens:
            if node.draft is None or token not in node.children:
                return None
            if token == node.draft:
                total += node.distance
            elif token == node.own and node.surprise is not None:
                total += node.surprise
            else:
                return None
            node = node.children[token]
        return total

    def row(self, node: Node, rules: Rules | None = None) -> Row:
        """A row of the loop that has come this far."""
        row = Row(0, self.job.request, rules)
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
    surprises: Sequence[float] = ()

    @classmethod
    def of(cls, line: bytes) -> Branch | None:
        """That of a line; None of a damaged one."""
        try:
            branch = cls(*from_json(line))
            along: list[Sequence[float]] = [branch.confidences, branch.own, branch.distances]
            along += [branch.surprises] if branch.surprises else []
            sound = (
                is_count(branch.text)
                and all(is_count(token) for token in (*branch.prefix, *branch.draft, *branch.own))
                and all(len(each) == len(branch.draft) and all(map(is_number, each)) for each in along)
            )
        except (ValueError, TypeError):
            return None
        return branch if sound else None


class _Listening(LocalVerifier):
    """Also hears how surprising the large model finds its own likeliest tokens."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self.surprises: dict[int, list[float]] = {}
        """Of the last pass, by row: one number for each token of its draft, and one behind it."""

    def _judge(
        self,
        group: Group,
        reading: Reading,
        rows: Sequence[Row],
        work: Sequence[Work],
        verdicts: list[Verdict | None],
    ) -> None:
        super()._judge(group, reading, rows, work, verdicts)
        surprises = (-reading.scores.summary.probability.log()).tolist()
        for at, (b, count) in enumerate(zip(group.members, reading.counts, strict=True)):
            self.surprises[b] = surprises[at][-count:] if count else []


class Reader:
    """Reads prefixes in batches, with both models.

    Args:
        decoder: the pair.
        trees: of the texts.
        file: JSON lines that everything read is appended to, and that is read first; None: nothing is kept.
        measure: of confidence.
        metric: of distance.
        batch_size: texts read together, 1…
        progress: told how many texts are done, of those that something had to be read of.
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
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.decoder, self.trees, self.file, self.progress = decoder, trees, file, progress
        # Never unsure and never rolled back: a draft is the whole branch, the verdict what large says of it.
        policy = Policy(
            hand_over=LowConfidence(0.0, measure),
            acceptance=WithinDistance(float("inf"), metric),
            max_draft_tokens=BRANCH,
        )
        self.rules = Rules(policy)
        self.batch_size = batch_size if decoder.batches else 1
        if file is not None and file.exists():
            self._load(file)

    def follow(self, ways: Mapping[int, Iterator[Node]]) -> None:
        """Let each text go its way through its tree; read the prefixes at which it stands still.

        Args:
            ways: by text, the index of its tree; each yields nodes that nobody has read, and goes on when they are.
        """
        standing = [(index, way, node) for index, way in ways.items() if (node := next(way, None)) is not None]
        # Sources of one length need no padding.
        standing.sort(key=lambda item: len(self.trees[item[0]].job.source))
        with torch.inference_mode():
            for at in range(0, len(standing), self.batch_size):
                self._follow(standing[at : at + self.batch_size])
                done = min(at + self.batch_size, len(standing))
                self.progress(done, len(standing))

    def _follow(self, standing: list[tuple[int, Iterator[Node], Node]]) -> None:
        """A row a text: both models keep what they have read of it, and go back no further than they must."""
        sources = [self.trees[index].job.source for index, _, _ in standing]
        scorer = self.decoder.large.start(sources)
        large, drafter = _Listening(scorer), ModelDrafter(self.decoder.small.beside(scorer, sources))
        read: list[list[int]] = [[] for _ in standing]
        while standing:
            rows = [self.trees[index].row(node, self.rules) for index, _, node in standing]
            # The last token is read again: what follows it is asked for.
            lengths = [min(common(old, row.tokens), len(row.tokens) - 1) for old, row in zip(read, rows, strict=True)]
            large.truncate(lengths)
            drafter.truncate(lengths)
            drafts = drafter.draft(rows, [BRANCH] * len(rows))
            verdicts = [verdict for verdict in large.verify(rows, drafts) if verdict is not None]
            surprises = large.surprises
            self._keep(
                Branch(
                    index,
                    node.tokens,
                    draft.tokens,
                    draft.confidences,
                    list(verdict.likeliest[:-1]),
                    list(verdict.distances),
                    surprises[b][:-1],
                )
                for b, ((index, _, node), draft, verdict) in enumerate(zip(standing, drafts, verdicts, strict=True))
            )
            nodes = [next(way, None) for _, way, _ in standing]
            kept = [b for b, node in enumerate(nodes) if node is not None]
            if kept and len(kept) < len(standing):
                large.keep(kept)
                drafter.keep(kept)
            read = [rows[b].tokens for b in kept]
            standing = [(*standing[b][:2], node) for b, node in enumerate(nodes) if node is not None]

    def _keep(self, branches: Iterable[Branch]) -> None:
        every = list(branches)
        for branch in every:
            self._grow(branch)
        if self.file is not None:
            with writing(self.file), self.file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(branch) + "\n" for branch in every)

    def _grow(self, branch: Branch) -> None:
        tree = self.trees[branch.text]
        node = tree.root
        for token in branch.prefix:
            node = tree.child(node, token)
        for i, token in enumerate(branch.draft):
            node.draft, node.own = token, branch.own[i]
            node.confidence, node.distance = branch.confidences[i], branch.distances[i]
            node.surprise = branch.surprises[i] if branch.surprises else None
            node = tree.child(node, token)

    def _load(self, file: Path) -> None:
        for line in whole_lines(file):
            branch = Branch.of(line)
            # What is damaged is read again.
            if branch is not None and branch.text < len(self.trees):
                self._grow(branch)
