"""Segments of a text that a reward judges: what is good enough stays unread, what is not the large model writes.

Reward-guided speculative decoding (Liao et al., arXiv 2501.19324): the small model writes a step of its reasoning, up
to a delimiter; if its reward is at least ``δ`` the step stays, else the large model writes this step in its place. The
text is a mixture of both models, so this is not lossless, and the large model reads what stays only when it next has a
turn.

Ours: the longest segment is the policy's ``max_draft_tokens``; a draft that its drafter breaks off before a segment is
complete is read as any other, by the policy's acceptance rule; and a row's drafts have random numbers of their own,
anew after each segment that was rejected: what was drawn there decided that it was, and may not be drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from bild.decoding.draft import Draft
from bild.decoding.rows import Reward, Row
from bild.errors import BildError, InputError, one_line

Way = Literal["read", "keep", "score", "rewrite"]
"""What becomes of a draft: the large model reads and judges it; it stays unread; it stays, and is read only because the
request asks how likely its tokens are; or the large model writes in its place."""


def room(row: Row) -> int:
    """How many tokens may be drafted behind what is committed; 0 where it is the large model's turn."""
    rules = row.rules
    if rules.segments is None:
        return rules.window
    written = row.committed - row.segment
    if written and (written >= rules.window or rules.segments.complete(row.tokens[row.segment : row.committed])):
        # Whoever wrote the last one: the next one is the drafter's.
        row.segment, row.rewriting, written = row.committed, False, 0
    return 0 if row.rewriting else rules.window - written


@contextmanager
def apart(rows: Sequence[Row]) -> Iterator[None]:
    """Let drafters draw with other numbers than the large model, where a reward judges what they drew."""
    judged = [row for row in rows if row.rules.segments is not None]
    for row in judged:
        row.stream = 1 + row.rewrites
    try:
        yield
    finally:
        for row in judged:
            row.stream = 0


def ways(rows: Sequence[Row], drafts: Sequence[Draft]) -> list[Way]:
    """What becomes of each draft, which is the end of its row's tokens; a reward is asked once for all of its drafts.

    Raises:
        InputError: a reward that fails, or gives something else than a number a segment.
    """
    found: list[Way] = [
        "read" if row.rules.segments is not None or row.rules.policy.reads(draft) else "keep"
        for row, draft in zip(rows, drafts, strict=True)
    ]
    asked: dict[int, list[int]] = {}
    for b, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        if row.rules.segments is not None and _whole(row, draft):
            asked.setdefault(id(row.rules.segments.reward), []).append(b)
    for places in asked.values():
        segments = rows[places[0]].rules.segments
        assert segments is not None
        judged, own = [rows[b] for b in places], [drafts[b] for b in places]
        for b, score in zip(places, _scores(segments.reward, judged, own), strict=True):
            rule = rows[b].rules.policy.segment
            assert rule is not None
            found[b] = "keep" if math.isfinite(score) and score >= rule.delta else "rewrite"
            if found[b] == "rewrite":
                _drop(rows[b])
    return ["score" if way == "keep" and _is_scored(row) else way for way, row in zip(found, rows, strict=True)]


def _is_scored(row: Row) -> bool:
    """Whether the request asks how likely tokens are, and there is a large model to say so."""
    return row.request.logprobs is not None and row.rules.policy.alone is None


def _whole(row: Row, draft: Draft) -> bool:
    """Whether a draft completes its segment; one that is as long as it may be does."""
    return bool(draft.tokens) and (draft.closes or len(row.tokens) - row.segment >= row.rules.window)


def _drop(row: Row) -> None:
    """Take a draft back; it is the large model's turn until the segment is complete."""
    del row.tokens[row.committed :]
    row.rewriting = True
    row.rewrites += 1


def _scores(reward: Reward, rows: Sequence[Row], drafts: Sequence[Draft]) -> list[float]:
    try:
        given = list(reward.score(rows, drafts))
    except BildError:
        raise
    except Exception as error:
        raise InputError(f"the reward failed with {one_line(error)}; mend it, or take another policy") from error
    if len(given) != len(rows):
        raise InputError(f"the reward gave {len(given)} numbers for {len(rows)} segments; allowed is one for each")
    try:
        return [float(each) for each in given]
    except (TypeError, ValueError):
        kinds = ", ".join(sorted({type(each).__name__ for each in given}))
        raise InputError(f"the reward gave {kinds}; allowed is a number for each segment") from None
