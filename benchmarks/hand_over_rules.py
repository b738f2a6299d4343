"""Hand-over rules that look at more than one token's probability, looked up on what both models say of prefixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bild.tuning.simulation import Box, Outcome, judge, share_walks
from bild.tuning.traces import Node, Tree

Score = Literal["nothing", "probability", "product", "kept", "all kept", "truth"]
"""What is compared with the threshold: nothing; the small model's probability of its token; its product over the draft;
the calibrated probability that the large model keeps the token; its product over the draft; whether it keeps it, which
no rule can know."""
FEATURES = (
    "one", "log odds of p", "place in the draft", "doubt so far", "rolled back last", "last distance", "agreed so far",
    "place in the text", "source length", "surprise of large",
)  # fmt: skip
"""What is known of a token when the small model has written it, before the large one has read it."""
ROW = (0, 1, 4, 5, 6, 8, 9)
"""Those that but for the probability are known before a draft begins, so that its threshold is one number."""
PLACE = (0, 1, 2, 3)
"""Those of the draft alone."""
EVERY = tuple(range(len(FEATURES)))
USUAL, PRIOR = 0.85, 4.0
"""A text begins as if so many tokens had been judged and this share of them agreed."""
FAR = 6.0
"""Nats; what is further away counts as this."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy in numbers.

    Args:
        score: see :data:`Score`.
        threshold: hand over when the score is below.
        window: longest draft.
        rollback: nats; −1: exact match.
        end: a draft that ends the text is read when a probability in it is below; −1: never, inf: always.
        keeps: whether the doubtful token stays in the draft.
        weights: of :data:`FEATURES`, for the calibrated scores.
    """

    score: Score
    threshold: float
    window: int
    rollback: float
    end: float
    keeps: bool = False
    weights: tuple[float, ...] = ()

    @property
    def lossless(self) -> bool:
        """Whether the text is the large model's own."""
        return self.rollback < 0 and self.end == math.inf

    def keeps_token(self, node: Node) -> bool:
        """Whether the large model lets the small one's token stand."""
        return node.draft == node.own or node.distance <= self.rollback

    def number(self, node: Node, doubt: float, place: int, past: Past) -> float:
        """Of the next token: its probability, or the calibrated one.

        Args:
            node: where it stands.
            doubt: −log of the product of the probabilities of the draft before it.
            place: tokens of the draft before it.
            past: of the text.
        """
        if self.score == "truth":
            return float(self.keeps_token(node))
        return kept(self.weights, features(node, doubt, place, past)) if self.weights else node.confidence


@dataclass(slots=True)
class Past:
    """What the earlier rounds of a text have shown."""

    source: int
    judged: int = 0
    agreed: int = 0
    rolled_back: bool = False
    distance: float = 0.0
    """Mean, of the tokens judged last; 0 before any."""
    surprise: float = 0.0
    """−log p_L of the token that the large model wrote last; 0 before any."""

    def learn(self, draft: Sequence[Node], accepted: int) -> None:
        """Take a round into account, up to the first token that was rolled back."""
        judged = draft[: accepted + 1]
        self.rolled_back = accepted < len(draft)
        if judged:
            self.judged += len(judged)
            self.agreed += sum(node.draft == node.own for node in judged)
            self.distance = sum(min(node.distance, FAR) for node in judged) / len(judged)

    @property
    def share(self) -> float:
        """Of the judged tokens, those that were the large model's own."""
        return (self.agreed + PRIOR * USUAL) / (self.judged + PRIOR)


def features(node: Node, doubt: float, place: int, past: Past) -> list[float]:
    """:data:`FEATURES` of the next token, see :meth:`Rule.number`."""
    p = min(max(node.confidence, 1e-6), 1 - 1e-6)
    return [
        1.0,
        math.log(p / (1 - p)),
        math.log1p(place),
        doubt,
        float(past.rolled_back),
        past.distance,
        math.log(past.share / (1.0001 - past.share)),
        math.log1p(len(node.tokens)),
        math.log(past.source),
        past.surprise,
    ]


def kept(weights: Sequence[float], values: Sequence[float]) -> float:
    """The calibrated probability that the large model keeps a token."""
    total = sum(weight * value for weight, value in zip(weights, values, strict=True))
    return 1 / (1 + math.exp(-min(max(total, -30.0), 30.0)))


@dataclass
class Seen:
    """Tokens that the large model has read, or would have: what was known of each, and whether it stood."""

    values: list[list[float]] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)


def walk(tree: Tree, rule: Rule, seen: Seen | None = None) -> Generator[Node, None, tuple[Outcome, Box]]:
    """Decode one text greedily by looking up what both models say; as :func:`bild.tuning.simulation.walk`.

    Args:
        tree: what is known of the text.
        rule: the policy.
        seen: is told of every token up to the first that was rolled back, and of the doubtful one behind them.

    Yields:
        Prefixes that nobody has read; they must have been when it goes on.
    """
    node, past, box = tree.root, Past(max(len(tree.job.source), 1)), Box()
    small_steps = large_steps = drafted = accepted = rounds = 0
    whole_draft = rule.score in ("product", "all kept")
    while True:
        draft: list[Node] = []
        rows: list[list[float]] = []
        doubt, score, lowest, least, reason, doubtful = 0.0, 1.0, 2.0, 2.0, "", None
        while not reason:
            if node.draft is None:
                yield node
            small_steps += 1
            if seen is not None:
                rows.append(features(node, doubt, len(draft), past))
            number = rule.number(node, doubt, len(draft), past)
            score = score * number if whole_draft else number
            unsure = score < rule.threshold
            if unsure:
                box.below_fallback(score)
            else:
                lowest = min(lowest, score)
            if unsure and not rule.keeps:
                doubtful = node
                break
            least = min(least, node.confidence)
            doubt -= math.log(max(node.confidence, 1e-6))
            draft.append(node)
            assert node.draft is not None
            node = node.children[node.draft]
            if node.finish is not None:
                # Only an end token may pass unread.
                reason = "end" if node.finish == "eos" else "read"
            elif unsure or len(draft) == rule.window:
                reason = "window"
        box.not_below_fallback(lowest)
        rounds += 1
        drafted += len(draft)
        if reason == "end":
            box.ended(least, read=least < rule.end)
            if least >= rule.end:
                accepted += len(draft)
                break
        large_steps += 1
        stood = judge(draft, rule.rollback, box)
        accepted += stood
        if seen is not None:
            judged = [*draft, doubtful] if doubtful is not None else draft
            for values, each in list(zip(rows, judged, strict=True))[: stood + 1]:
                seen.values.append(values)
                seen.kept.append(rule.keeps_token(each))
        past.learn(draft, stood)
        if node.finish is not None and stood == len(draft):
            break
        last = draft[stood] if stood < len(draft) else node
        if last.draft is None:
            yield last
        past.surprise = min(0.0 if last.surprise is None else last.surprise, FAR)
        node = tree.child(last, last.own)
        if node.finish is not None:
            break
    return Outcome(node.tokens, small_steps, large_steps, drafted, accepted, rounds), box


def look_up(tree: Tree, rules: Sequence[Rule], found: Callable[[int, Outcome], None]) -> Generator[Node, None, None]:
    """What each rule makes of one text. Rules that differ in thresholds alone and go the same way share one walk."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for number, rule in enumerate(rules):
        weighed = rule.rollback if rule.weights or rule.score == "truth" else None
        kinds.setdefault((rule.score, rule.window, rule.keeps, weighed), []).append(number)
    for numbers in kinds.values():
        table = np.array([(0.0, rules[n].threshold, rules[n].rollback, rules[n].end) for n in numbers])
        yield from share_walks(numbers, table, lambda number: walk(tree, rules[number]), found)


def fit(seen: Seen, used: Sequence[int], ridge: float = 1.0) -> tuple[float, ...]:
    """Logistic regression by Newton's method; features that are not used have weight 0.

    Args:
        seen: tokens.
        used: indices of :data:`FEATURES`; the first is the constant, which is not pulled towards 0.
        ridge: of the other weights, each measured in its own spread.
    """
    table, stood = np.array(seen.values)[:, list(used)], np.array(seen.kept, dtype=float)
    spread = table.std(0)
    spread[spread == 0] = 1.0
    scaled, pull = table / spread, np.full(len(used), ridge)
    pull[0] = 0.0
    weights = np.zeros(len(used))
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        slope = scaled.T @ (stood - p) - pull * weights
        weights += np.linalg.solve((scaled * (p * (1 - p))[:, None]).T @ scaled + np.diag(pull + 1e-9), slope)
    full = [0.0] * len(FEATURES)
    for index, weight in zip(used, weights / spread, strict=True):
        full[index] = float(weight)
    return tuple(full)


def ranking(seen: Seen, weights: Sequence[float]) -> tuple[float, float]:
    """How well weights tell tokens that stand from those that do not: area under the ROC curve, nats a token."""
    values, stood = np.array(seen.values) @ np.array(weights), np.array(seen.kept)
    order = values.argsort(kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    good, bad = int(stood.sum()), int((~stood).sum())
    area = (ranks[stood].sum() - good * (good + 1) / 2) / max(good * bad, 1)
    return float(area), float(np.logaddexp(0, np.where(stood, -values, values)).mean())
