"""Several rounds of two models in one call, where the rules are plain enough for the models to follow by themselves.

What becomes of a round is said by the same functions as in the open: a model that plays tells what was written and how
it was judged, and :mod:`bild.decoding.commits` makes commits of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bild.decoding.acceptance import ExactMatch, WithinDistance
from bild.decoding.commits import Commit, commit_judged, commit_unread
from bild.decoding.draft import Draft, Work
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.model import ModelDrafter, halt, looks_at, may_roll, write
from bild.decoding.rows import Row
from bild.decoding.scorer import Played, Turn, playing
from bild.decoding.verdict import Verdict, learner
from bild.decoding.verifier import LocalVerifier, Verifier

MANY = 1000
"""Rounds in one call, where they are quick: more than any text has."""
PATIENCE_S = 0.004
"""No round begins later than this after the call: a stream shows what is written, and others may join."""


def play(
    rows: Sequence[Row], large: Verifier, drafter: Drafter | None, window: int | None, most: int
) -> list[Commit] | None:
    """Rounds of all rows until each has ended, or some time has gone by.

    Args:
        rows: of the batch.
        large: judges.
        drafter: drafts.
        window: longest draft, 0…; None: as long as each row's policy allows.
        most: rounds, 1…

    Returns:
        Commits in the order of rounds; None where the rounds are to be played in the open, and nothing was done.

    Raises:
        ScoreError: a model whose scores are not numbers, in the first of these rounds. In a later one the rounds before
            it are returned, and the next call raises.
    """
    if type(large) is not LocalVerifier or type(drafter) is not ModelDrafter:
        return None
    scorer = playing(large.scorer, drafter.scorer)
    if scorer is None:
        return None
    turns = [_turn(row, window) for row in rows]
    known = [turn for turn in turns if turn is not None]
    if len(known) < len(rows) or any(turn.halt.ends != known[0].halt.ends for turn in known):
        return None
    played = scorer.play(drafter.scorer, known, most, PATIENCE_S)
    if not played:
        return None
    for each in played[: len(rows)]:
        if _is_broken(each):
            large.check(rows[each.row], [math.nan])
    return [
        _commit(rows[each.row], each, known[each.row].window, large, drafter) for each in played if not _is_broken(each)
    ]


def _is_broken(played: Played) -> bool:
    return played.judged is not None and not played.judged.is_sound


def _turn(row: Row, window: int | None) -> Turn | None:
    """What a model has to know to play a row; None where it cannot be told."""
    rules, request = row.rules, row.request
    policy, acceptance, rule = rules.policy, rules.acceptance, rules.hand_over
    longest = rules.window if window is None else min(rules.window, window)
    judged = policy.alone is None and rules.segments is None
    plain = judged and request.logprobs is None and longest > 0 and may_roll(row)
    if not plain or learner(acceptance) is not None or learner(rule) is not None:
        return None
    # Exact types: a rule made of one of these may judge otherwise.
    if type(acceptance) is ExactMatch:
        limit = -1.0
    elif type(acceptance) is WithinDistance and acceptance.metric == "nll":
        limit = acceptance.threshold
    else:
        return None
    stop = halt(row, request.max_new_tokens)
    if stop is None:
        return None
    certain = policy.verify_end
    sure = (math.inf if certain else -math.inf) if isinstance(certain, bool) else certain
    return Turn(row.tokens, stop, longest, rule.keeps_doubtful, limit, sure)


def _commit(row: Row, played: Played, window: int, large: LocalVerifier, drafter: ModelDrafter) -> Commit:
    """What a round made final."""
    rule = row.rules.hand_over
    measured = looks_at(rule) == "probability"
    draft = Draft(writer=drafter.name, work={drafter.name: Work(len(played.tokens), played.read)})
    for token, probability in zip(played.tokens, played.probabilities, strict=True):
        write(row, draft, token, probability, rule, measured, None, window)
    judged = played.judged
    if judged is None:
        commit = commit_unread(row, draft, "keep")
    else:
        exact = type(row.rules.acceptance) is ExactMatch
        verdict = Verdict(
            judged.accepted,
            judged.next_token,
            (0.0,) * len(judged.distances) if exact else tuple(judged.distances),
            tuple(judged.likeliest),
            large.name,
            Work(1, judged.read),
        )
        commit = commit_judged(row, draft, verdict, "read")
    assert commit is not None
    return commit
