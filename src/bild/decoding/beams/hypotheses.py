"""Beam search of one text: which hypotheses live, which are finished, and when no better one can come.

The rules are those of transformers, so that the same options give the same text: of the ``K`` best continuations of all
that live, ``K = max(2, 1 + end tokens) · width``, the first ``width`` that do not end live on; those among the first
``width`` that end are finished, and of all that are finished the ``width`` best stay. The score of a hypothesis is the
sum of its tokens' log-probabilities; finished ones are compared by ``score / length ** length_penalty``.

Where tokens are drawn the ``K`` continuations are a draw without replacement from all of them, by the softmax of their
scores: those of the largest sums of score and Gumbel noise (:mod:`bild.decoding.beams.noise`). All else stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from bild.decoding.beams.noise import Noise
from bild.decoding.commits import Hypothesis
from bild.decoding.rows import Beams, FinishReason, Row
from bild.decoding.scores import check_numbers
from bild.decoding.transfer import to_device


class Node:
    """The last token of a hypothesis; the others are above it. The root is the whole prompt.

    Args:
        parent: the token before; None of the root.
        token: its id.
        score: sum of the log-probabilities from the root on, by the model that was last asked.
        depth: tokens of the hypothesis, the prompt's included.
    """

    __slots__ = ("children", "depth", "drafted", "parent", "score", "token")

    def __init__(self, parent: Node | None, token: int, score: float, depth: int) -> None:
        self.parent, self.token, self.score, self.depth = parent, token, score, depth
        self.drafted = False
        """Whether it was drafted, and stayed."""
        self.children: dict[int, Node] = {}
        """Drafted ones, by their tokens."""

    def child(self, token: int, score: float) -> Node:
        """The one that was drafted, or a new one."""
        node = self.children.get(token)
        if node is None:
            return Node(self, token, score, self.depth + 1)
        node.score = score
        return node

    def above(self, depth: int) -> Node:
        """The node so deep on the way to this one."""
        node = self
        while node.depth > depth and node.parent is not None:
            node = node.parent
        return node

    def path(self, depth: int) -> list[Node]:
        """The nodes deeper than ``depth`` on the way to this one, in order."""
        nodes, node = [], self
        while node.depth > depth and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


def shared(nodes: Iterable[Node]) -> Node:
    """The deepest node that is on the way to all of these."""
    left = set(nodes)
    while len(left) > 1:
        deepest = max(node.depth for node in left)
        left = {node.parent if node.depth == deepest and node.parent else node for node in left}
    return left.pop()


class Finished(NamedTuple):
    """A hypothesis that has ended."""

    score: float
    node: Node
    reason: FinishReason


class Candidates(NamedTuple):
    """The next tokens of a hypothesis that are chosen first, in this order."""

    tokens: Sequence[int]
    log_probabilities: Sequence[float]
    drawn: Sequence[float]
    """What each is chosen by: the log-probability, with noise where tokens are drawn."""


Continuation = tuple[float, float, Node, int]
"""A hypothesis that may be the next: what it is chosen by, its score, what it goes on from, and its token. A step makes
some hundreds, so they have no names."""


def ranked(parents: Sequence[Node], candidates: Sequence[Candidates], keeps: int) -> list[Continuation]:
    """All continuations, of equals those of an earlier parent first.

    Args:
        parents: what they go on from.
        candidates: of each parent.
        keeps: so many are chosen: they come first, in falling order of their scores.
    """
    found = [
        (parent.score + drawn, parent.score + log_probability, parent, token)
        for parent, some in zip(parents, candidates, strict=True)
        for token, log_probability, drawn in zip(*some, strict=True)
    ]
    found.sort(key=itemgetter(0), reverse=True)
    return [*sorted(found[:keeps], key=itemgetter(1), reverse=True), *found[keeps:]]


class Search:
    """The hypotheses of one text.

    Args:
        row: what was asked for; its tokens are those that all hypotheses share.
        beams: how it is searched.
    """

    def __init__(self, row: Row, beams: Beams) -> None:
        self.row, self.beams = row, beams
        self.prompt = row.tokens[: row.prompt_length]
        self.root = Node(None, self.prompt[-1], 0.0, row.prompt_length)
        self.live = [self.root]
        """In falling order of their scores, all of one length."""
        self.finished: list[Finished] = []
        """In falling order of their scores, at most ``width``."""
        self.keeps = max(2, 1 + len(row.request.eos_token_ids)) * beams.width
        """Continuations that are looked at."""
        self.noise = Noise(row.request.generator) if row.rules.choice.draws else None
        """What decides which continuations are drawn; None: the likeliest are taken."""
        self.done = False

    def tokens(self, node: Node, start: int = 0) -> list[int]:
        """Of a hypothesis, prompt and all, from a position on."""
        new = [each.token for each in node.path(max(start, self.row.prompt_length))]
        return [*self.prompt[start:], *new]

    @property
    def changes_scores(self) -> bool:
        """Whether tokens are compared by anything but their log-probabilities."""
        return self.noise is not None or self.row.request.process is not None

    def scores(self, nodes: Sequence[Node], log_probabilities: Tensor) -> Tensor:
        """What next tokens of hypotheses are compared by: log-probabilities ``[N, V]``, penalised and warped.

        They are not made to sum to 1 again, as they are not in transformers.
        """
        process, values = self.row.request.process, log_probabilities
        if process is not None:
            values = torch.stack([process(self.tokens(node), each) for node, each in zip(nodes, values, strict=True)])
        return values if self.noise is None else self.row.rules.choice.warped(values)

    def drawn(self, nodes: Sequence[Node], scores: Tensor) -> Tensor:
        """What they are drawn by: these scores ``[N, V]`` with noise."""
        assert self.noise is not None
        noise = self.noise.after([self.tokens(node) for node in nodes], scores.shape[-1])
        return scores + to_device(noise.to(scores.dtype), scores.device)

    def advance(self, candidates: Sequence[Candidates]) -> None:
        """Make every hypothesis that lives a token longer.

        Args:
            candidates: the best continuations of each.

        Raises:
            ScoreError: they have scores that are not numbers.
        """
        width, found = self.beams.width, self._best(candidates)
        _, _, parent, _ = found[0]
        length = parent.depth + 1 - self.row.prompt_length
        running: list[Node] = []
        ended: list[Finished] = []
        for place, (_, score, parent, token) in enumerate(found):
            if place >= width and len(running) == width:
                break
            node = parent.child(token, score)
            reason = self.ends(node)
            if reason is None:
                running.append(node)
            elif place < width:
                ended.append(Finished(self._compared(score, length), node, reason))
        full = len(self.finished) == width
        if ended and not (full and self.beams.early_stopping is True):
            self.finished = sorted([*self.finished, *ended], key=lambda each: -each.score)[:width]
        self.live = running
        self.done = not running or (len(self.finished) == width and not self._can_improve(length))

    def ends(self, node: Node) -> FinishReason | None:
        """Whether a hypothesis ends with this token, and why."""
        return self.row.request.ended(node.token, node.depth, lambda: self.tokens(node))

    @property
    def agreed(self) -> Node:
        """The last token sure to be in the text: it is on the way to all that live and to the best that is finished."""
        return shared([*self.live, *(each.node for each in self.finished[:1])])

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What is finished, the best first."""
        start = self.row.prompt_length
        return tuple(Hypothesis(tuple(self.tokens(node, start)), score, why) for score, node, why in self.finished)

    def _best(self, candidates: Sequence[Candidates]) -> list[Continuation]:
        """The best continuations of all hypotheses, in falling order; what is forbidden is none of them."""
        # What is no number stands before all others.
        written = self.live[0].depth - self.row.prompt_length
        check_numbers([each.log_probabilities[0] for each in candidates], "the model's", self.row.index, written)
        found = ranked(self.live, candidates, self.keeps)[: self.keeps]
        return [each for each in found if each[1] > -math.inf] or found[:1]

    def _compared(self, score: float, length: int) -> float:
        return float(score / length**self.beams.length_penalty)

    def _can_improve(self, length: int) -> bool:
        """Whether a hypothesis that lives may become better than what is finished, as transformers estimates it."""
        beams = self.beams
        if beams.early_stopping is True:
            return False
        if beams.early_stopping == "never" and beams.length_penalty > 0:
            length = self.row.request.max_new_tokens
        return self._compared(self.live[0].score, length) > self.finished[-1].score
