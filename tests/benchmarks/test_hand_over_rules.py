"""The study of hand-over rules: lookups are those of bild tune, and weights are what tokens were made with."""

from __future__ import annotations

import itertools
import math
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from hand_over_rules import FEATURES, Rule, Seen, fit, look_up, ranking, walk

from bild.tuning import simulation
from bild.tuning.simulation import Limits
from bild.tuning.traces import Node, Tree

END, LENGTH = 0, 7


def grown(rng: Random, tokens: tuple[int, ...] = ()) -> Node:
    """All prefixes of up to seven tokens of three, as if two models had read them; token 0 ends a text."""
    finish = "eos" if tokens[-1:] == (END,) else "length" if len(tokens) == LENGTH else None
    node = Node(tokens, finish)
    if finish is None:
        node.draft, node.own = rng.choice((0, 1, 1, 2, 2)), rng.choice((0, 1, 1, 2, 2))
        node.confidence, node.distance, node.surprise = rng.random(), 5 * rng.random(), rng.random()
        node.children = {token: grown(rng, (*tokens, token)) for token in (0, 1, 2)}
    return node


TREES = [Tree(SimpleNamespace(source=[3] * 4), grown(Random(seed))) for seed in range(8)]


def end_of(walking):
    """What a walk comes to; everything has been read."""
    with pytest.raises(StopIteration) as ended:
        next(walking)
    return ended.value.value


RULES = [
    Rule("probability", threshold, window, rollback, end, keeps)
    for threshold, window, rollback, end, keeps in itertools.product(
        (0.0, 0.3, 0.6), (2, 10), (-1.0, 2.0), (-1.0, 0.5, math.inf), (False, True)
    )
]


def test_a_threshold_is_looked_up_as_by_bild_tune():
    outcomes = set()
    for tree, rule in itertools.product(TREES, RULES):
        limits = Limits(rule.window, rule.threshold, rule.rollback, rule.end, rule.keeps)
        outcome = end_of(walk(tree, rule))[0]
        assert outcome == end_of(simulation.walk(tree, limits))[0]
        outcomes.add(outcome)
    assert len(outcomes) > 50


def test_rules_that_share_a_walk_go_each_their_own_way():
    weights = (0.5, 1.2, 0.3, -0.2, -0.4, -0.1, 0.6, 0.0, 0.1, -0.3)
    rules = RULES + [
        Rule(score, threshold, 10, 2.0, -1.0, keeps, weights if "kept" in score else ())
        for score, threshold, keeps in itertools.product(
            ("product", "kept", "all kept", "truth"), (0.2, 0.5, 0.8), (False, True)
        )
    ]
    for tree in TREES:
        found = {}
        end_of(look_up(tree, rules, found.__setitem__))
        assert found == {number: end_of(walk(tree, rule))[0] for number, rule in enumerate(rules)}


def test_who_knows_the_truth_is_never_rolled_back():
    for tree in TREES:
        outcome = end_of(walk(tree, Rule("truth", 0.5, 10, 2.0, math.inf)))[0]
        assert outcome.num_accepted_tokens == outcome.num_draft_tokens


def test_weights_are_those_that_the_tokens_were_made_with():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20_000, len(FEATURES)))
    table[:, 0] = 1.0
    true = np.array([0.5, 1.5, 0, 0, -0.8, 0, 0, 0, 0, 0])
    stood = rng.random(len(table)) < 1 / (1 + np.exp(-table @ true))
    seen = Seen(table.tolist(), stood.tolist())
    weights = fit(seen, (0, 1, 4))
    assert np.allclose(weights, true, atol=0.1)
    area, nats = ranking(seen, weights)
    assert 0.8 < area < 0.9 and nats < ranking(seen, fit(seen, (0, 1)))[1]
