"""The loop of beam search: draft layers of hypotheses, let the large model read them all, take those it would take.

A layer is what lives after one more token: ``width`` hypotheses. The small model goes on from those that live with a
beam search of its own; the large model reads every hypothesis that was drafted in one pass and searches on as far as
all that lives has been read. Each layer is chosen by its scores alone, so the text is that of its own beam search
whatever was drafted; ours, after the layers of dynamic-width speculative beam decoding (arXiv 2409.16560).

The small model hands over by the row's rule, which is asked of a layer as it is asked of a token: its confidence is
``1 − p / q``, where ``p`` is the probability of the best hypothesis that was left out of the layer and ``q`` that of
the last of ``width`` in it, by the large model's scores up to those that live and the small one's from there on.

Where tokens are drawn both models' scores get the same noise, so that models that agree draw the same layer, and the
text is still the one that the large model would draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bild.decoding.beams.hypotheses import Candidates, Node, Search, ranked
from bild.decoding.beams.tree import Tree, Way
from bild.decoding.commits import Commit
from bild.decoding.draft import HandOverReason, Work, Writer
from bild.decoding.rows import Beams, Row
from bild.decoding.scorer import Scorer


class BeamBatch:
    """Texts that are searched together, each with beams of its own. It is used as :class:`~bild.decoding.Batch` is.

    Args:
        rows: what was asked for, in the order of the scorers' rows; each has beams among its rules.
        large: the scorer of the model whose search it is, with a row a text.
        small: likewise of the one that drafts; None: nobody does.
        name: of the model whose search it is.
    """

    def __init__(self, rows: Sequence[Row], large: Scorer, small: Scorer | None = None, name: Writer = "large") -> None:
        self._searches = [Search(row, _beams(row)) for row in rows]
        self._large, self._name = Tree(large, self._searches), name
        self._small = None if small is None else Tree(small, self._searches)

    @property
    def rows(self) -> list[Row]:
        """Of the texts that are not complete."""
        return [search.row for search in self._searches]

    @property
    def drafter(self) -> Tree | None:
        """Who drafts."""
        return self._small

    def round(self, window: int | None = None, most: int = 1) -> Iterator[Commit]:
        """Draft layers for every text, and search as far as the large model has read.

        Args:
            window: most layers that are drafted, 0…; None: as many as each row's policy allows.
            most: rounds, 1…; there is one in any case.

        Yields:
            One :class:`Commit` a text, of the tokens that all its hypotheses have come to share: maybe none.

        Raises:
            ScoreError: a model whose scores are not numbers.
        """
        searches, drafts = self._searches, self._draft(window)
        wanted = [Way(search, leaf, search.live[0].depth) for search in searches for leaf in _leaves(search.live)]
        known, read = self._large.read(wanted)
        commits = [_accepted(draft, known, self._name, read[draft.search]) for draft in drafts]
        self.keep([b for b, search in enumerate(searches) if not search.done])
        yield from commits

    def read(self, limit: int) -> bool:
        """Let both models read at most ``limit`` prompt tokens of each text; True once nothing but drafting is left."""
        done = self._large.read_prompts(limit)
        return (self._small is None or self._small.read_prompts(limit)) and done

    def join(self, other: BeamBatch) -> None:
        """Go on with another batch's texts behind these; it is used up. Both are of the same models.

        Raises:
            ValueError: in one of them somebody drafts and in the other nobody.
        """
        if (self._small is None) != (other._small is None):
            raise ValueError("a batch with a drafter and one without cannot join; start both of the same models")
        if not self._searches:
            self._large, self._small = other._large, other._small
        elif other._searches:
            self._large.join(other._large)
            if self._small is not None and other._small is not None:
                self._small.join(other._small)
        self._searches = [*self._searches, *other._searches]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts; the others are cancelled."""
        self._searches = [self._searches[b] for b in rows]
        for tree in (self._large, self._small):
            if tree is not None:
                tree.keep(self._searches)

    def _draft(self, window: int | None) -> list[_Layers]:
        """Let the small model go on from what lives, a layer of hypotheses a pass."""
        small, limit = self._small, math.inf if window is None else window
        drafts = [
            _Layers(search, 0 if small is None else min(limit, search.row.rules.window)) for search in self._searches
        ]
        while small is not None and (going := [draft for draft in drafts if draft.goes_on]):
            known, read = small.read([Way(draft.search, node, node.depth) for draft in going for node in draft.last])
            for draft in going:
                draft.add(known, read[draft.search])
        return drafts


def _beams(row: Row) -> Beams:
    beams = row.rules.beams
    if beams is None:
        raise ValueError(f"row {row.index} has no beams among its rules; a Batch decodes it")
    return beams


class _Layers:
    """What is drafted for one text.

    Args:
        search: of the text; drafts go on from what lives.
        room: most layers.
    """

    def __init__(self, search: Search, room: float) -> None:
        for node in search.live:
            node.children = {}
        self.search, self.room = search, room
        self.layers: list[list[Node]] = []
        self.read = 0
        self.reason: HandOverReason | None = None
        self.confidences: list[float] = []

    @property
    def goes_on(self) -> bool:
        """Whether there is another layer to draft."""
        return self.reason is None and len(self.layers) < self.room

    @property
    def last(self) -> list[Node]:
        """The hypotheses to go on from."""
        return self.layers[-1] if self.layers else self.search.live

    @property
    def work(self) -> dict[Writer, Work]:
        """Of the small model."""
        steps = len(self.confidences)
        return {"small": Work(steps, self.read)} if steps else {}

    @property
    def tokens(self) -> tuple[int, ...]:
        """The best drafted hypothesis, from those that live on."""
        return tuple(node.token for node in self.last[0].path(self.search.live[0].depth))

    def add(self, known: Mapping[Node, Candidates], read: int) -> None:
        """Draft one more layer: the best that do not end, and some to spare.

        Args:
            known: how each of the last hypotheses may go on.
            read: tokens that were read for it.
        """
        search, last = self.search, self.last
        width = search.beams.width
        layer, confidence = list[Node](), 1.0
        self.read += read
        for _, score, parent, token in ranked(last, [known[node] for node in last], search.keeps):
            node = Node(parent, token, score, parent.depth + 1)
            if score > -math.inf and search.ends(node) is None:
                if len(layer) == width + search.beams.SPARE:
                    # Of those that were not drawn the scores may be higher.
                    confidence = 1 - math.exp(min(0.0, score - layer[width - 1].score))
                    break
                layer.append(node)
        self.confidences.append(confidence)
        hand_over = search.row.rules.hand_over
        if not layer:
            self.reason = "end"
        elif hand_over.unsure(confidence, search.row):
            self.reason = "unsure"
        if layer and (self.reason is None or hand_over.keeps_doubtful):
            self.layers.append(layer)
            for node in layer:
                assert node.parent is not None
                node.parent.children[node.token] = node


def _leaves(nodes: Sequence[Node]) -> Iterator[Node]:
    """The drafted hypotheses that none is longer than, and those that live of which nothing was drafted."""
    for node in nodes:
        if node.children:
            yield from _leaves(list(node.children.values()))
        else:
            yield node


def _accepted(draft: _Layers, known: Mapping[Node, Candidates], name: Writer, read: int) -> Commit:
    """Search on as far as all that lives has been read, and make final what all hypotheses share."""
    # What lives is replaced by what comes of it.
    search, drafted = draft.search, draft.tokens
    row, accepted = search.row, 0
    while True:
        search.advance([known[node] for node in search.live])
        if search.done or any(node not in known for node in search.live):
            break
        accepted += 1
        for node in search.live:
            node.drafted = True
    best = search.finished[0] if search.done else None
    path = (search.agreed if best is None else best.node).path(row.committed)
    row.tokens += [node.token for node in path]
    row.committed = len(row.tokens)
    return Commit(
        row=row.index,
        tokens=tuple(node.token for node in path),
        writers=tuple("small" if node.drafted else name for node in path),
        draft=drafted,
        accepted=min(accepted, len(drafted)),
        reason=draft.reason or "window" if draft.confidences else None,
        finish_reason=None if best is None else best.reason,
        work={**draft.work, name: Work(1, read)},
        confidences=tuple(draft.confidences),
        hypotheses=search.hypotheses if search.done else (),
    )
