"""Two other networks, simulated: two machines that work on different batches at once, and a large model in shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bild.edge.costs import Costs
from bild.edge.link import Clock
from bild.edge.plan import Batch, Plan, planned
from bild.edge.recording import Recording, Text
from bild.errors import InputError

WINDOWS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Shards:
    """A large model that lies on several nodes, one behind the other.

    Args:
        nodes: 1…
        node_s: time of all nodes together for one token, in seconds, above 0 (``t0``).
        link_s: from one node to the next, in seconds, 0… (``t1``).
        read_share: what each further token of a pass costs, as a share of the first, 0…1; the paper's is 1.
        draft_s: of a token that is drafted, in seconds, 0…

    Raises:
        InputError: a value out of range.
    """

    nodes: int
    node_s: float
    link_s: float
    read_share: float = 1.0
    draft_s: float = 0.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or not self.node_s > 0 or not self.link_s >= 0 or not 0 <= self.read_share <= 1:
            raise InputError(f"shards are {self}; allowed are 1 node or more, node_s above 0, link_s 0 or more")

    def pass_s(self, tokens: int) -> float:
        """Of a pass that reads so many tokens of one text."""
        return self.node_s * (1 + self.read_share * (tokens - 1)) + (self.nodes - 1) * self.link_s

    def plain_s(self, text: Text) -> float:
        """Of a text, token by token."""
        return len(text) * self.pass_s(1)

    def speculative_s(self, text: Text, window: int) -> float:
        """Of a text, round by round, on a clock of its own.

        Args:
            text: recorded.
            window: longest draft, 1…
        """
        clock, at = Clock(), 0

        def go() -> None:
            nonlocal at
            if at < len(text):
                drafted, _, at = text.round(at, window)
                clock.after(drafted * self.draft_s + self.pass_s(drafted + 1), go)

        go()
        return clock.run()

    def speedup(self, recording: Recording, window: int) -> float:
        """Of speculation over plain decoding, over all texts."""
        plain = sum(map(self.plain_s, recording.texts))
        return plain / sum(self.speculative_s(text, window) for text in recording.texts)


def two_stages(texts: Sequence[Text], batches: Sequence[Batch], costs: Costs) -> float:
    """When all texts are done: one machine drafts a round of one batch while the other verifies another's.

    Each machine takes the batch that has waited longest; within a batch a round is drafted when the one before it has
    been verified.

    Args:
        texts: recorded, in the order of the batches.
        batches: sizes and windows.
        costs: of passes; the draft machine writes a token of all texts of a batch in one step.
    """
    clock, groups, start = Clock(), list[_Group](), 0
    for batch in batches:
        groups.append(_Group(list(texts[start : start + batch.size]), batch.window))
        start += batch.size
    first, second = _Machine(clock), _Machine(clock)

    def draft(group: _Group) -> None:
        width = max((text.round(at, group.window)[0] for text, at in group.going), default=0)
        first.take(width * costs.draft_s, lambda: verify(group))

    def verify(group: _Group) -> None:
        tokens = sum(text.round(at, group.window)[0] + 1 for text, at in group.going)
        second.take(costs.verify.seconds(len(group.going), tokens), lambda: judged(group))

    def judged(group: _Group) -> None:
        group.advance()
        if group.going:
            draft(group)

    for group in groups:
        draft(group)
    return clock.run()


def alone(texts: Sequence[Text], costs: Costs, largest: int) -> float:
    """When all texts are done by the large model alone, in batches one after the other, texts that end leaving them."""
    seconds = 0.0
    for start in range(0, len(texts), largest):
        lengths = [len(text) for text in texts[start : start + largest]]
        for at in range(max(lengths)):
            going = sum(length > at for length in lengths)
            seconds += costs.verify.seconds(going, going)
    return seconds


def plan_of(texts: Sequence[Text], alpha: float, costs: Costs, largest: int) -> Plan:
    """The plan for these texts, whose lengths are taken for known."""
    return planned(
        [len(text) for text in texts],
        alpha,
        lambda rows, window: window * costs.draft_s,
        lambda rows, window: costs.verify.seconds(rows, rows * (window + 1)),
        WINDOWS,
        largest,
    )


class _Group:
    def __init__(self, texts: list[Text], window: int) -> None:
        self.window = window
        self.going = [(text, 0) for text in texts]

    def advance(self) -> None:
        moved = [(text, text.round(at, self.window)[2]) for text, at in self.going]
        self.going = [(text, at) for text, at in moved if at < len(text)]


class _Machine:
    """Does one thing at a time, in the order in which it is asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.free = clock, 0.0

    def take(self, seconds: float, then: Callable[[], None]) -> None:
        self.free = max(self.free, self.clock.now) + seconds
        self.clock.after(self.free - self.clock.now, then)
