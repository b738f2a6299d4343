"""The small model as a drafter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bild.decoding.choice import Choice, Greedy
from bild.decoding.hand_over import LowConfidence
from bild.decoding.policy import Policy
from bild.decoding.rows import Row
from bild.decoding.scorer import Draft, Scorer, score
from bild.decoding.transfer import to_host


class ModelDrafter:
    """Writes with the small model until it is unsure, its window is full, or the text ends.

    Args:
        scorer: the small model.
        policy: its hand-over rule and ``max_draft_tokens``; the smaller of this and the rule's own window
            is the longest draft. Logits are recorded if its acceptance rule reads them.
        choice: how the small model picks a token.
    """

    def __init__(self, scorer: Scorer, policy: Policy, choice: Choice | None = None) -> None:
        self.scorer = scorer
        self.hand_over = hand_over = policy.hand_over
        window = hand_over.window
        self.window = policy.max_draft_tokens if window is None else min(window, policy.max_draft_tokens)
        self.records_logits = policy.acceptance.needs_draft_logits
        self.choice = Greedy() if choice is None else choice
        # What a summary answers too.
        self.takes_likeliest = isinstance(self.choice, Greedy)
        self.trusts_likeliest = isinstance(hand_over, LowConfidence) and hand_over.measure == "max_probability"

    def draft(self, rows: Sequence[Row]) -> list[Draft]:
        """Append a draft to every row's tokens and describe it."""
        drafts = [Draft() for _ in rows]
        while any(writing := [int(draft.reason is None) for draft in drafts]):
            lengths = self.scorer.lengths
            unread = [row.tokens[lengths[b] :] if writing[b] else [] for b, row in enumerate(rows)]
            tokens, confidences, logits = self._read(unread, rows, writing)
            for b, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                if writing[b]:
                    self._write(row, draft, int(tokens[b][0]), confidences[b][0] if confidences else None)
                    if logits is not None and len(draft.logits) < len(draft.tokens):
                        draft.logits.append(logits[b, -1])
        return drafts

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after these lengths."""
        self.scorer.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.scorer.keep(rows)

    def _read(
        self, unread: Sequence[Sequence[int]], rows: Sequence[Row], writing: Sequence[int]
    ) -> tuple[list[list[float]], list[list[float]], Tensor | None]:
        """Next tokens and confidences ``[B, 1]``, brought to the host in one transfer; logits if they are recorded."""
        logits, summary = score(self.scorer, rows, unread, writing)
        tokens = summary.likeliest if summary and self.takes_likeliest else self.choice(logits, rows, writing)
        confidence = summary.probability if summary and self.trusts_likeliest else self.hand_over.confidence(logits)
        wanted = logits if self.records_logits else None
        if confidence is None:
            return to_host(tokens)[0], [], wanted
        ids, confidences = to_host(tokens, confidence)
        return ids, confidences, wanted

    def _write(self, row: Row, draft: Draft, token: int, confidence: float | None) -> None:
        draft.steps += 1
        unsure = confidence is not None and self.hand_over.unsure(confidence, row)
        if confidence is not None:
            draft.confidences.append(confidence)
        if unsure and not self.hand_over.keeps_doubtful:
            draft.reason, draft.doubtful = "unsure", token
            return
        row.tokens.append(token)
        draft.tokens.append(token)
        if row.ended() is not None:
            draft.reason = "end"
        elif unsure:
            draft.reason = "unsure"
        elif len(draft.tokens) == self.window:
            draft.reason = "window"
