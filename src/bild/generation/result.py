"""What comes back for one input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from bild.decoding import Commit, FinishReason, Hypothesis, Stats, Writer
from bild.generation.text import decode, pieces, shown


@dataclass(slots=True)
class Result:
    """One decoded text and how it came about."""

    text: str
    """Without special tokens; a stop string stays part of it."""
    token_ids: list[int]
    """The new tokens, the end token included."""
    writers: list[Writer]
    """``"small"``, ``"large"``, or the name of another drafter, for each token."""
    finish_reason: FinishReason
    """``"eos"``, ``"stop"`` (a stop string) or ``"length"``."""
    stats: Stats
    """Counts and rates of this text."""
    ttft_s: float
    """Seconds from the moment this text got a row to its first committed token."""
    total_s: float
    """Seconds from the moment this text got a row to its last token."""
    rounds: list[Commit] = field(repr=False)
    """Every round: drafts, rollbacks, confidences and distances."""

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What a beam search has finished, the best first: the text and its alternatives; empty without one."""
        return self.rounds[-1].hypotheses or ()

    @property
    def logprobs(self) -> list[float] | None:
        """How likely the large model found each token (the small one, where it writes alone), as natural logarithms.

        From its own distribution, before temperature, top-k and top-p. None unless the call asked for ``logprobs``.

        What was likeliest in each place has :attr:`~bild.Commit.scored` of the rounds.
        """
        found = [each.logprob for commit in self.rounds for each in commit.scored]
        return found if found else None

    @property
    def seconds_per_token(self) -> float:
        """Total time / tokens, in seconds."""
        return self.total_s / len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Tokens / total time."""
        return len(self.token_ids) / self.total_s

    @classmethod
    def of(
        cls, rounds: list[Commit], tokenizer: PreTrainedTokenizerBase | None, ttft_s: float, total_s: float
    ) -> Result:
        """The result of a row's commits, in order, the last of which finished it."""
        token_ids = [token for commit in rounds for token in commit.tokens]
        finish_reason = rounds[-1].finish_reason
        assert finish_reason is not None
        return cls(
            text=decode(tokenizer, token_ids),
            token_ids=token_ids,
            writers=[writer for commit in rounds for writer in commit.writers],
            finish_reason=finish_reason,
            stats=Stats.of(rounds),
            ttft_s=ttft_s,
            total_s=total_s,
            rounds=rounds,
        )

    def stats_dict(self) -> dict[str, Any]:
        """Counts, rates and times as plain JSON values."""
        return {
            **self.stats.to_dict(),
            "ttft_s": self.ttft_s,
            "total_s": self.total_s,
            "seconds_per_token": self.seconds_per_token,
            "tokens_per_second": self.tokens_per_second,
        }

    def tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
        """One ``{"id", "text", "writer"}`` a token; the texts of ordinary tokens join to :attr:`text`.

        If the call asked for ``logprobs``, each has its ``"logprob"``, and the ``"likeliest"`` if it asked for them.
        """
        texts = pieces(tokenizer, self.token_ids)
        found: list[dict[str, Any]] = [
            {"id": id, "text": text, "writer": writer}
            for id, text, writer in zip(self.token_ids, texts, self.writers, strict=True)
        ]
        scored = [each for commit in self.rounds for each in commit.scored]
        for token, own in zip(found, scored, strict=False):
            token["logprob"] = own.logprob
            if own.likeliest:
                token["likeliest"] = [
                    {"id": id, "text": shown(tokenizer, id), "logprob": logprob} for id, logprob in own.likeliest
                ]
        return found
