"""What a policy would write and how many passes it would take, from what is known of the prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bild.decoding import ExactMatch, LowConfidence, Policy, WithinDistance
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
        policy: hands over at low confidence; accepts within a distance or exact matches.

    Raises:
        ValueError: a policy of other rules.
    """
    fallback, rollback = thresholds(policy)
    window = policy.max_draft_tokens if policy.hand_over.window is None else policy.hand_over.window
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
    """Fallback and rollback threshold; exact match is a rollback threshold below every distance.

    Raises:
        ValueError: rules that have none.
    """
    known = type(policy.hand_over) is LowConfidence and not policy.hand_over.keeps_doubtful
    if not known or type(policy.acceptance) not in (WithinDistance, ExactMatch) or policy.alone is not None:
        raise ValueError("only policies of low confidence and a distance, or exact match, can be looked up")
    assert isinstance(policy.hand_over, LowConfidence)
    rollback = policy.acceptance.threshold if isinstance(policy.acceptance, WithinDistance) else -1.0
    return policy.hand_over.threshold, rollback


class Simulator:
    """Decodes texts by policies, reading what is missing.

    Args:
        trees: one a text.
        reader: reads prefixes.
        progress: told how many nodes have been read, and how many of those wanted in this round.
    """

    def __init__(
        self, trees: Sequence[Tree], reader: Reader, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.trees, self.reader, self.progress = trees, reader, progress
        self.outcomes: dict[tuple[int, Policy], Outcome] = {}

    def run(self, policies: Iterable[Policy], texts: Sequence[int]) -> None:
        """Find out what these policies make of these texts (indices of trees)."""
        open_ = [(index, policy) for policy in policies for index in texts if (index, policy) not in self.outcomes]
        while open_:
            missing: dict[int, tuple[int, Node]] = {}
            blocked = []
            for index, policy in open_:
                outcome = simulate(self.trees[index], policy)
                if isinstance(outcome, Outcome):
                    self.outcomes[index, policy] = outcome
                else:
                    missing[id(outcome.node)] = (index, outcome.node)
                    blocked.append((index, policy))
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
