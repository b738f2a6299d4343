"""BiLD straight from its definition: no cache, no batch, every distribution computed anew from the prefix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.toy import ToyModel


@dataclass
class Brute:
    """What the definition writes, and how."""

    tokens: list[int] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    finish: str = ""
    drafts: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def greedy(model: ToyModel, prompt: list[int], limit: int, eos: set[int]) -> list[int]:
    """Plain decoding by one model."""
    written: list[int] = []
    while len(written) < limit and not (written and written[-1] in eos):
        written.append(int(model.logits(prompt + written).argmax()))
    return written


def bild(
    small: ToyModel,
    large: ToyModel,
    prompt: list[int],
    *,
    limit: int,
    eos: set[int],
    fallback: float,
    rollback: float,
    window: int,
    verify_end: bool | float,
) -> Brute:
    """Algorithm 1 with D1 to D4 of the design."""
    out = Brute()

    def ended(tokens: list[int]) -> str:
        if tokens and tokens[-1] in eos:
            return "eos"
        return "length" if len(tokens) >= limit else ""

    while not out.finish:
        draft: list[int] = []
        doubts: list[float] = []
        reason = ""
        while not reason:
            p = small.logits(prompt + out.tokens + draft).softmax(-1)
            if p.max() < fallback:
                reason = "unsure"
                break
            draft.append(int(p.argmax()))
            doubts.append(1 - float(p.max()))
            if ended(out.tokens + draft):
                reason = {"eos": "end", "length": "length"}[ended(out.tokens + draft)]
            elif len(draft) == window:
                reason = "window"
        out.drafts.append(draft)
        out.reasons.append(reason)
        reads = verify_end if isinstance(verify_end, bool) else max(doubts, default=1) > 1 - verify_end
        if reason == "end" and not reads:
            out.tokens += draft
            out.writers += ["small"] * len(draft)
            out.accepted.append(len(draft))
            out.finish = ended(out.tokens)
            break
        kept = 0
        for token in draft:
            p = large.logits(prompt + out.tokens + draft[:kept]).softmax(-1)
            if -p[token].log() > rollback and int(p.argmax()) != token:
                break
            kept += 1
        out.tokens += draft[:kept]
        out.writers += ["small"] * kept
        out.accepted.append(kept)
        if not ended(out.tokens) or kept < len(draft):
            out.tokens.append(int(large.logits(prompt + out.tokens).argmax()))
            out.writers.append("large")
        out.finish = ended(out.tokens)
    return out


def cascade(
    small: ToyModel,
    middle: ToyModel,
    large: ToyModel,
    prompt: list[int],
    *,
    limit: int,
    eos: set[int],
    fallback: float,
    qualifier: float,
    rollback: float,
    short: int,
    window: int,
    verify_end: bool,
) -> Brute:
    """The middle model judges short drafts of the small one until a window stands, then the large one judges that."""
    out = Brute()

    def ended(tokens: list[int]) -> str:
        if tokens and tokens[-1] in eos:
            return "eos"
        return "length" if len(tokens) >= limit else ""

    def kept(model: ToyModel, threshold: float, before: list[int], draft: list[int]) -> int:
        for at, token in enumerate(draft):
            p = model.logits(prompt + before + draft[:at]).softmax(-1)
            if -p[token].log() > threshold and int(p.argmax()) != token:
                return at
        return len(draft)

    while not out.finish:
        draft: list[int] = []
        writers: list[str] = []
        reason = ""
        while not reason:
            proposal: list[int] = []
            before = out.tokens + draft
            room = min(short, window - len(draft))
            while len(proposal) < room and not (proposal and ended(before + proposal)):
                p = small.logits(prompt + before + proposal).softmax(-1)
                if p.max() < fallback:
                    break
                proposal.append(int(p.argmax()))
            stands = kept(middle, qualifier, before, proposal)
            draft += proposal[:stands]
            writers += ["small"] * stands
            whole = bool(proposal) and stands == len(proposal)
            if not (whole and ended(out.tokens + draft)) and len(draft) < window:
                draft.append(int(middle.logits(prompt + out.tokens + draft).argmax()))
                writers.append("middle")
            end = ended(out.tokens + draft)
            reason = {"eos": "end", "length": "length"}[end] if end else "window" if len(draft) == window else ""
        out.drafts.append(draft)
        out.reasons.append(reason)
        unread = reason == "end" and not verify_end
        stands = len(draft) if unread else kept(large, rollback, out.tokens, draft)
        out.tokens += draft[:stands]
        out.writers += writers[:stands]
        out.accepted.append(stands)
        if not (stands == len(draft) and ended(out.tokens)):
            out.tokens.append(int(large.logits(prompt + out.tokens).argmax()))
            out.writers.append("large")
        out.finish = ended(out.tokens)
    return out


def rewarded(
    small: ToyModel,
    large: ToyModel,
    prompt: list[int],
    *,
    limit: int,
    eos: set[int],
    window: int,
    mark: int,
    reward: Callable[[list[int], list[int]], float],
    delta: float,
) -> Brute:
    """The small model writes up to a mark; what its reward rejects the large model writes in its place."""
    out = Brute()

    def segment(model: ToyModel) -> list[int]:
        """Up to the mark, the window or the end of the text."""
        new: list[int] = []
        while not new or not (new[-1] in {mark, *eos} or len(new) == window or len(out.tokens) + len(new) == limit):
            new.append(int(model.logits(prompt + out.tokens + new).argmax()))
        return new

    while not out.finish:
        draft = segment(small)
        out.drafts.append(draft)
        score = reward(out.tokens, draft)
        stays = math.isfinite(score) and score >= delta
        out.accepted.append(len(draft) * stays)
        new = draft if stays else segment(large)
        out.tokens += new
        out.writers += ["small" if stays else "large"] * len(new)
        if out.tokens[-1] in eos:
            out.finish = "eos"
        elif len(out.tokens) >= limit:
            out.finish = "length"
    return out
