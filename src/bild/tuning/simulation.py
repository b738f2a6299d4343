"""What policies would write and how many passes they would take, from what is known of the prefixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bild.decoding import ExactMatch, FixedWindow, LowConfidence, Policy, RejectionSampling, WithinDistance
from bild.tuning.traces import Node, Reader, Tree


@dataclass(frozen=True, slots=True)
class Outcome:
    """One text by one policy: its tokens, and counts as in :class:`bild.decoding.Stats`."""

    tokens: tuple[int, ...]
    num_small_steps: int
    num_large_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rounds: int

    @classmethod
    def alone(cls, tokens: tuple[int, ...]) -> Outcome:
        """What the large model writes alone."""
        return cls(tokens, 0, len(tokens), 0, 0, 0)


class Limits(NamedTuple):
    """A policy as numbers."""

    window: int
    """Longest draft."""
    fallback: float
    """Hand over when the confidence is below."""
    rollback: float
    """Roll back what is further away."""
    end: float
    """A draft that ends the text is read when its least confidence is below."""
    keeps: bool = False
    """Whether the doubtful token stays in the draft."""


def limits(policy: Policy) -> Limits:
    """The numbers of a policy.

    A fixed window is a fallback threshold below every confidence; exact match, which rejection sampling is where
    decoding is greedy, is a rollback threshold below every distance.

    Raises:
        ValueError: rules that have none.
    """
    hand_over, acceptance, end = policy.hand_over, policy.acceptance, policy.verify_end
    exact = type(acceptance) is ExactMatch or (type(acceptance) is RejectionSampling and acceptance.lossless)
    confident = type(hand_over) is LowConfidence
    known = (confident or type(hand_over) is FixedWindow) and (exact or type(acceptance) is WithinDistance)
    if not known or any(other is not None for other in (policy.alone, policy.qualifier, policy.segment)):
        raise ValueError(
            "only policies of low confidence or a fixed window, and a distance or exact match, can be looked up"
        )
    return Limits(
        policy.max_draft_tokens if hand_over.window is None else min(hand_over.window, policy.max_draft_tokens),
        hand_over.threshold if isinstance(hand_over, LowConfidence) else 0.0,
        acceptance.threshold if isinstance(acceptance, WithinDistance) else -1.0,
        {False: -1.0, True: math.inf}[end] if isinstance(end, bool) else end,
        hand_over.keeps_doubtful,
    )


@dataclass(slots=True)
class Box:
    """Intervals of thresholds, open below and closed above, within which a walk takes the same path through a tree."""

    fallback: tuple[float, float] = (-math.inf, math.inf)
    rollback: tuple[float, float] = (-math.inf, math.inf)
    end: tuple[float, float] = (-math.inf, math.inf)

    def below_fallback(self, confidence: float) -> None:
        """This confidence was too low."""
        self.fallback = (max(self.fallback[0], confidence), self.fallback[1])

    def not_below_fallback(self, confidence: float) -> None:
        """This one was not."""
        self.fallback = (self.fallback[0], min(self.fallback[1], confidence))

    def kept(self, distance: float) -> None:
        """A token as far away as this was kept; a threshold equal to it would keep it too."""
        self.rollback = (max(self.rollback[0], _before(distance)), self.rollback[1])

    def lost(self, distance: float) -> None:
        """A token as far away as this was rolled back."""
        self.rollback = (self.rollback[0], min(self.rollback[1], _before(distance)))

    def ended(self, least: float, read: bool) -> None:
        """A draft of this least confidence ended the text, and was read or not."""
        low, high = self.end
        self.end = (max(low, least), high) if read else (low, min(high, least))

    def holds(self, table: np.ndarray) -> np.ndarray:
        """Which rows ``[P, 4…]`` of :class:`Limits` have their thresholds inside: ``[P]``, booleans."""
        bounds = np.array([self.fallback, self.rollback, self.end])
        inside: np.ndarray = np.all((table[:, 1:4] > bounds[:, 0]) & (table[:, 1:4] <= bounds[:, 1]), axis=1)
        return inside


def _before(number: float) -> float:
    return math.nextafter(number, -math.inf)


def walk(tree: Tree, at: Limits) -> Generator[Node, None, tuple[Outcome, Box]]:
    """Decode one text greedily by looking up what both models say (Algorithm 1).

    Args:
        tree: what is known of the text; read with the policy's measure and metric.
        at: the policy.

    Yields:
        Prefixes that nobody has read; they must have been when it goes on.
    """
    node, box, small_steps, large_steps, drafted, accepted, rounds = tree.root, Box(), 0, 0, 0, 0, 0
    while True:
        draft: list[Node] = []
        sure, least, reason = 2.0, 2.0, ""
        while not reason:
            if node.draft is None:
                yield node
            small_steps += 1
            unsure = node.confidence < at.fallback
            if unsure:
                box.below_fallback(node.confidence)
                if not at.keeps:
                    break
            else:
                sure = min(sure, node.confidence)
            least = min(least, node.confidence)
            draft.append(node)
            node = node.children[node.draft]  # type: ignore[index]  # it has been read by now
            if node.finish is not None:
                # Only an end token may pass unread.
                reason = "end" if node.finish == "eos" else "read"
            elif unsure or len(draft) == at.window:
                reason = "window"
        box.not_below_fallback(sure)
        rounds += 1
        drafted += len(draft)
        if reason == "end":
            box.ended(least, read=least < at.end)
            if least >= at.end:
                accepted += len(draft)
                break
        large_steps += 1
        kept = judge(draft, at.rollback, box)
        accepted += kept
        if node.finish is not None and kept == len(draft):
            break
        last = draft[kept] if kept < len(draft) else node
        if last.draft is None:
            yield last
        node = tree.child(last, last.own)
        if node.finish is not None:
            break
    return Outcome(node.tokens, small_steps, large_steps, drafted, accepted, rounds), box


def judge(draft: Sequence[Node], rollback: float, box: Box) -> int:
    """How many tokens of a draft the large model keeps.

    Args:
        draft: where each token of it was written.
        rollback: the large model rolls back what is further away.
        box: is told for which thresholds that is so.
    """
    furthest = -math.inf
    for i, at in enumerate(draft):
        if at.draft != at.own:
            if at.distance > rollback:
                box.kept(furthest)
                box.lost(at.distance)
                return i
            furthest = max(furthest, at.distance)
    box.kept(furthest)
    return len(draft)


Found = Callable[[int, Any], None]
"""Told what the policy of this number makes of a text."""
Look = Callable[[Tree, Sequence[Any], Found], Generator[Node, None, None]]
"""Finds out what policies make of one text; yields prefixes as :func:`walk` does."""


def look_up(tree: Tree, policies: Sequence[Policy], found: Found) -> Generator[Node, None, None]:
    """What each policy makes of one text. Policies that go the same way share one walk."""
    known = [limits(policy) for policy in policies]
    kinds: dict[tuple[int, bool], list[int]] = {}
    for number, at in enumerate(known):
        kinds.setdefault((at.window, at.keeps), []).append(number)
    table = np.array(known, dtype=np.float64)
    for numbers in kinds.values():
        yield from share_walks(numbers, table[numbers], lambda number: walk(tree, known[number]), found)


def share_walks(
    numbers: Sequence[int],
    table: np.ndarray,
    start: Callable[[int], Generator[Node, None, tuple[Any, Box]]],
    found: Callable[[int, Any], None],
) -> Generator[Node, None, None]:
    """Walk as often as policies that differ in their thresholds alone part.

    Args:
        numbers: of the policies.
        table: of each, a row as :meth:`Box.holds` takes it.
        start: a walk by the policy of this number.
        found: is told what each policy makes of the text.
    """
    open_ = np.ones(len(numbers), dtype=bool)
    while open_.any():
        first = int(open_.argmax())
        outcome, box = yield from start(numbers[first])
        same = open_ & box.holds(table)
        # Whoever walked is done, wherever rounding puts the ends of the box.
        same[first] = True
        for at in same.nonzero()[0].tolist():
            found(numbers[at], outcome)
        open_ &= ~same


class Simulator:
    """Decodes texts by policies, reading what is missing.

    Args:
        trees: one a text.
        reader: reads prefixes.
        look: finds what policies make of one text; policies are what it takes.
    """

    def __init__(self, trees: Sequence[Tree], reader: Reader, look: Look = look_up) -> None:
        self.trees, self.reader, self.look = trees, reader, look
        self.outcomes: dict[Hashable, dict[int, Any]] = {}
        """By policy, then by text."""

    def run(self, policies: Iterable[Any], texts: Sequence[int]) -> None:
        """Find out what these policies make of these texts (indices of trees)."""
        known = [(policy, self.outcomes.setdefault(policy, {})) for policy in dict.fromkeys(policies)]

        def look(index: int) -> Generator[Node, None, None]:
            missing = [(policy, of_policy) for policy, of_policy in known if index not in of_policy]

            def found(number: int, outcome: Any) -> None:
                missing[number][1][index] = outcome

            if missing:
                yield from self.look(self.trees[index], [policy for policy, _ in missing], found)

        self.reader.follow({index: look(index) for index in texts})
