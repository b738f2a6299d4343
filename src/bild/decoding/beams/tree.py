"""A model that reads hypotheses: each of its rows has read the way to one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bild.decoding.beams.hypotheses import Candidates, Node, Search
from bild.decoding.scorer import Scorer
from bild.decoding.scores import Scores
from bild.decoding.transfer import to_host

GROUP = 64
"""Numbers of which first the largest alone is looked at."""
FEW = 4
"""How many times as many groups as are wanted there must be, so that it pays to look at maxima first."""


class Way(NamedTuple):
    """What a model is to read."""

    search: Search
    node: Node
    """The hypothesis it leads to."""
    since: int
    """How many tokens the shortest hypothesis on it has of which it is asked how it may go on."""


class Read(NamedTuple):
    """What a pass has found."""

    candidates: dict[Node, Candidates]
    """The best continuations of every node that was read, as many as its search looks at."""
    tokens: Counter[Search]
    """How many were read for each search."""


class Tree:
    """A scorer whose rows follow the hypotheses of several searches.

    Args:
        scorer: has read nothing, or the beginning of each prompt; a row a search.
        searches: in the order of its rows.
    """

    def __init__(self, scorer: Scorer, searches: Sequence[Search]) -> None:
        self.scorer = scorer
        self._rows = [(search, search.root) for search in searches]
        """Whose each row is, and on the way to which node it has read."""

    def read(self, wanted: Sequence[Way]) -> Read:
        """Read the way to some nodes; the rows of searches that want nothing stay as they are."""
        self._follow(wanted)
        lengths, idle = self.scorer.lengths, len(self._rows) - len(wanted)
        tokens = [way.search.tokens(way.node, length) for way, length in zip(wanted, lengths, strict=False)]
        # The root stands for the whole prompt.
        asked = [
            way.node.path(way.since - 1) if way.since > way.search.root.depth else [way.search.root, *way.node.path(0)]
            for way in wanted
        ]
        scores = self.scorer.summarize([*tokens, *([] for _ in range(idle))], last=max(map(len, asked)))
        read = Counter[Search]()
        for way, each in zip(wanted, tokens, strict=True):
            read[way.search] += len(each)
        return Read(_likeliest(Scores(*scores), wanted, asked), read)

    def read_prompts(self, limit: int) -> bool:
        """Read at most ``limit`` more tokens of each prompt, all but the last; True when no row has more."""
        prompts, lengths = [search.prompt for search, _ in self._rows], self.scorer.lengths
        ends = [min(length + limit, len(prompt) - 1) for prompt, length in zip(prompts, lengths, strict=True)]
        pieces = [prompt[length:end] for prompt, length, end in zip(prompts, lengths, ends, strict=True)]
        if any(pieces):
            self.scorer.extend(pieces)
        return all(length >= len(prompt) - 1 for prompt, length in zip(prompts, self.scorer.lengths, strict=True))

    def keep(self, searches: Collection[Search]) -> None:
        """Go on with these searches."""
        rows = [b for b, (search, _) in enumerate(self._rows) if search in searches]
        # Where nobody goes on there is nothing to go on with.
        if rows and len(rows) < len(self._rows):
            self.scorer.keep(rows)
            self._rows = [self._rows[b] for b in rows]

    def join(self, other: Tree) -> None:
        """Go on with another tree's rows behind these; it is used up."""
        self.scorer.join(other.scorer)
        self._rows += other._rows

    def _follow(self, wanted: Sequence[Way]) -> None:
        """A row for each of these ways, before all others: the one that has read most of it."""
        lengths = self.scorer.lengths
        # What is asked may have been read before; its scores were not kept, so it is read again.
        enough = {way.search: way.since - 1 for way in wanted}
        row_of = self._read_by(enough)
        found = [_last_of(way.node, row_of) for way in wanted]
        if None in found:
            row_of = self._read_by(dict.fromkeys(enough, 0))
            found = [_last_of(way.node, row_of) for way in wanted]
        known = [node for node in found if node is not None]
        stay = [b for b, (search, _) in enumerate(self._rows) if search not in enough]
        rows = [*(row_of[node] for node in known), *stay]
        kept = [min(node.depth, enough[way.search]) for way, node in zip(wanted, known, strict=True)]
        if rows != list(range(len(lengths))):
            self.scorer.keep(rows)
        self.scorer.truncate([*kept, *(lengths[b] for b in stay)])
        self._rows = [*((way.search, way.node) for way in wanted), *(self._rows[b] for b in stay)]

    def _read_by(self, depths: Mapping[Search, int]) -> dict[Node, int]:
        """A row that has read the way to each node, of some searches and no higher up than a depth of each."""
        row_of: dict[Node, int] = {}
        for b, ((search, node), length) in enumerate(zip(self._rows, self.scorer.lengths, strict=True)):
            highest = depths.get(search)
            if highest is not None:
                above: Node | None = node.above(length)
                while above is not None and above not in row_of and above.depth >= highest:
                    row_of[above] = b
                    above = above.parent
        return row_of


def _last_of(node: Node, some: Container[Node]) -> Node | None:
    """The last one of some nodes on the way to this one."""
    at: Node | None = node
    while at is not None and at not in some:
        at = at.parent
    return at


def _likeliest(scores: Scores, wanted: Sequence[Way], asked: Sequence[Sequence[Node]]) -> dict[Node, Candidates]:
    """The best continuations of the nodes that are asked, the last of which is scored in the last place."""
    places: dict[Search, dict[Node, tuple[int, int]]] = {}
    for b, (way, nodes) in enumerate(zip(wanted, asked, strict=True)):
        known = places.setdefault(way.search, {})
        for back, node in enumerate(reversed(nodes)):
            known.setdefault(node, (b, -1 - back))

    logits, total = scores.logits, scores.summary.log_total[..., None]
    changed = [search for search in places if search.changes_scores]
    where = {search: tuple(map(list, zip(*places[search].values(), strict=True))) for search in changed}
    if changed:
        # What forbids, penalises or warps tokens is applied to log-probabilities, as transformers does under beams.
        logits, total = logits - total, torch.zeros_like(total)
    for search in changed:
        logits[where[search]] = search.scores(list(places[search]), logits[where[search]])
    noisy = [search for search in changed if search.noise is not None]
    drawn = logits.clone() if noisy else logits
    for search in noisy:
        drawn[where[search]] = search.drawn(list(places[search]), logits[where[search]])
    best, ids = largest(drawn, min(max(search.keeps for search in places), logits.shape[-1]))
    # Without noise they are chosen by their log-probabilities, which need not be brought twice.
    measured = [logits.gather(-1, ids), best] if noisy else [best]
    tokens, *found_by = to_host(ids, *(each - total for each in measured))
    likely, chosen = found_by[0], found_by[-1]
    found: dict[Node, Candidates] = {}
    for search, known in places.items():
        for node, (b, place) in known.items():
            first, *scores_of = (each[b][place][: search.keeps] for each in (tokens, likely, chosen))
            # A GPU's token ids come as numbers of floating point.
            found[node] = Candidates(list(map(int, first)), *scores_of)
    return found


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest numbers and their places, the largest first: as ``topk``, on a CPU in half its time for a vocabulary
    of 8,000 and in a fourth for one of 32,000.

    They are in the groups of the largest maxima, or behind the last whole group; ``topk`` looks at every number anew.

    Args:
        values: ``[…, V]``.
        count: how many, 1…V.
    """
    size, device = values.shape[-1], values.device
    groups = size // GROUP
    if groups < FEW * count or device.type != "cpu":
        found = values.topk(count)
        return found.values, found.indices
    maxima = values[..., : groups * GROUP].reshape(*values.shape[:-1], groups, GROUP).amax(-1)
    first = maxima.topk(count, sorted=False).indices[..., None] * GROUP
    inside = (first + torch.arange(GROUP)).flatten(-2)
    rest = torch.arange(groups * GROUP, size).expand(*inside.shape[:-1], -1)
    places = torch.cat([inside, rest], -1)
    found = values.gather(-1, places).topk(count)
    return found.values, places.gather(-1, found.indices)
