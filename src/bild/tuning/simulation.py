"""What a policy would write and how many passes it would take, from what is known of the prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Unknown:
    """A prefix the policy reaches that nobody has read."""

    node: Node


def simulate(tree: Tree, policy: Policy) -> Outcome | Unknown:
    """Decode one text greedily by looking up what both models say (Algorithm 1).

    Args:
        tree: what is known of the text; read with the policy's measure and metric.
        policy: hands over at low confidence or after a window; accepts within a distance or exact matches.

    Raises:
        ValueError: a policy of other rules.
    """
    fallback, rollback = thresholds(policy)
    own_window = policy.hand_over.window
    window = policy.max_draft_tokens if own_window is None else min(own_window, policy.max_draft_tokens)
    node, small_steps, large_steps, drafted, accepted, rounds = tree.root, 0, 0, 0, 0, 0
    while True:
        draft: list[Node] = []
        least, reason = 2.0, ""
        while not reason:
            if node.draft is None:
                return Unknown(node)
            small_steps += 1
            if node.confidence < fallback:
                break
            least = min(least, node.confidence)
            draft.append(node)
            node = node.children[node.draft]
            if node.finish is not None:
                reason = "end"
            elif len(draft) == window:
                reason = "window"
        rounds += 1
        drafted += len(draft)
        end = policy.verify_end
        if reason == "end" and not (end if isinstance(end, bool) else least < end):
            accepted += len(draft)
            break
        large_steps += 1
        kept = next((i for i, at in enumerate(draft) if at.distance > rollback and at.draft != at.own), len(draft))
        accepted += kept
        if reason == "end" and kept == len(draft):
            break
        at = draft[kept] if kept < len(draft) else node
        if at.draft is None:
            return Unknown(at)
        node = tree.child(at, at.own)
        if node.finish is not None:
            break
    return Outcome(node.tokens, small_steps, large_steps, drafted, accepted, rounds)


def thresholds(policy: Policy) -> tuple[float, float]:
    """Fallback and rollback threshold.

    A fixed window is a fallback threshold below every confidence; exact match, which rejection sampling is where
    decoding is greedy, is a rollback threshold below every distance.

    Raises:
        ValueError: rules that have none.
    """
    hand_over, acceptance = policy.hand_over, policy.acceptance
    exact = type(acceptance) is ExactMatch or (type(acceptance) is RejectionSampling and acceptance.lossless)
    confident = type(hand_over) is LowConfidence and not hand_over.keeps_doubtful
    known = (confident or type(hand_over) is FixedWindow) and (exact or type(acceptance) is WithinDistance)
    if not known or policy.alone is not None:
        raise ValueError(
            "only policies of low confidence or a fixed window, and a distance or exact match, can be looked up"
        )
    fallback = hand_over.threshold if isinstance(hand_over, LowConfidence) else 0.0
    return fallback, acceptance.threshold if isinstance(acceptance, WithinDistance) else -1.0


Progress = Callable[[int, int], None]
Walk = Callable[[Tree, Any], Any]
"""From a tree and a policy to an outcome, or to the prefix that is unknown."""


class Simulator:
    """Decodes texts by policies, reading what is missing.

    Args:
        trees: one a text.
        reader: reads prefixes.
        progress: told how many nodes have been read, and how many of those wanted in this round.
        walk: finds the way of one policy through one tree; policies are what it takes.
    """

    def __init__(
        self, trees: Sequence[Tree], reader: Reader, progress: Progress | None = None, walk: Walk = simulate
    ) -> None:
        self.trees, self.reader, self.progress, self.walk = trees, reader, progress, walk
        self.outcomes: dict[tuple[int, Any], Any] = {}

    def run(self, policies: Iterable[Any], texts: Sequence[int]) -> None:
        """Find out what these policies make of these texts (indices of trees)."""
        open_ = [(index, policy) for policy in policies for index in texts if (index, policy) not in self.outcomes]
        while open_:
            missing: dict[int, tuple[int, Node]] = {}
            blocked = []
            for index, policy in open_:
                outcome = self.walk(self.trees[index], policy)
                if isinstance(outcome, Unknown):
                    missing[id(outcome.node)] = (index, outcome.node)
                    blocked.append((index, policy))
                else:
                    self.outcomes[index, policy] = outcome
            self._read(list(missing.values()))
            open_ = blocked

    def _read(self, missing: Sequence[tuple[int, Node]]) -> None:
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(done, len(missing))

        self.reader.read(missing, tell)
