"""Quality and counts of many BiLD policies on dev sets, without timing: where to look for thresholds.

    python benchmarks/sweep.py --data A/dev.jsonl.gz B/dev.jsonl.gz --out sweep.jsonl

Policies differ in few tokens of a sentence, so each model's distributions are computed once a prefix and
shared by all of them: a hundred policies cost about as much as four. One JSON line a policy and data file.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import sacrebleu
import torch
from torch import Tensor

from bild import BigLittleDecoder, Policy, Stats
from bild.decoding import ModelDrafter, Request, Scorer, decode
from bild.evaluation import read_examples


class Memo:
    """A scorer of one row that never computes the distribution after a prefix twice."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.known = scorer, {}
        self.inside: list[int] = []
        self.tokens: list[int] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens read."""
        return [len(self.tokens)]

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        """Logits after the last prefixes, computed or remembered."""
        self.tokens = [*self.tokens, *tokens[0]]
        ends = range(len(self.tokens) - last + 1, len(self.tokens) + 1)
        if any(tuple(self.tokens[:end]) not in self.known for end in ends):
            self._compute()
        return torch.stack([self.known[tuple(self.tokens[:end])] for end in ends])[None]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget."""
        self.tokens = self.tokens[: lengths[0]]

    def keep(self, rows: Sequence[int]) -> None:
        """One row, always kept."""

    def _compute(self) -> None:
        shared = 0
        while shared < min(len(self.inside), len(self.tokens) - 1) and self.inside[shared] == self.tokens[shared]:
            shared += 1
        self.scorer.truncate([shared])
        new = self.tokens[shared:]
        logits = self.scorer.extend([new], last=len(new))[0]
        for back, row in enumerate(reversed(logits)):
            self.known[tuple(self.tokens[: len(self.tokens) - back])] = row
        self.inside = self.tokens


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fallback", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7])
    parser.add_argument("--rollback", type=float, nargs="+", default=[0.5, 1, 1.5, 2, 3, 4, 6])
    parser.add_argument("--verify-end", type=float, nargs="+", default=[0, 0.6, 0.8, 1])
    args = parser.parse_args()
    decoder = BigLittleDecoder.from_pretrained(args.pair, dtype=args.dtype)
    policies = {"large": Policy.large(), "small": Policy.small()}
    for end, fallback, rollback in itertools.product(args.verify_end, args.fallback, args.rollback):
        policies[f"bild {fallback:g} {rollback:g} {end:g}"] = Policy.bild(
            fallback_threshold=fallback, rollback_threshold=rollback, verify_end=bool(end) if end in (0, 1) else end
        )
    for path in args.data:
        sweep(decoder, policies, path, args)


def sweep(decoder: BigLittleDecoder, policies: dict[str, Policy], path: Path, args: argparse.Namespace) -> None:
    """All policies over one data file, sentence by sentence."""
    examples = read_examples(str(path), limit=args.limit).examples
    texts: dict[str, list[str]] = {name: [] for name in policies}
    stats: dict[str, list[Stats]] = {name: [] for name in policies}
    for number, example in enumerate(examples, 1):
        source = decoder.prompter().encode(example.source)
        large, small = (Memo(model.start([source])) for model in (decoder.large, decoder.small))
        for name, policy in policies.items():
            commits = run(decoder, policy, large, small)
            tokens = [token for commit in commits for token in commit.tokens]
            texts[name].append(decoder.tokenizer.decode(tokens, skip_special_tokens=True))
            stats[name].append(Stats.of(commits))
        if number % 100 == 0:
            print(path.parent.name, number, flush=True)
    targets = [[example.references[0] for example in examples]]
    with args.out.open("a") as out:
        for name in policies:
            bleu = sacrebleu.corpus_bleu(texts[name], targets).score
            row = {"data": path.parent.name, "policy": name, "sentences": len(examples), "bleu": bleu}
            out.write(json.dumps(row | Stats.total(stats[name]).to_dict()) + "\n")


def run(decoder: BigLittleDecoder, policy: Policy, large: Memo, small: Memo) -> list:
    """One sentence by one policy, as `generate` would decode it."""
    config = decoder.generation_config
    eos = config.eos_token_id
    request = Request(
        prompt=[config.decoder_start_token_id],
        max_new_tokens=config.max_new_tokens or 128,
        eos_token_ids=eos if isinstance(eos, list) else [eos],
    )
    large.truncate([0])
    small.truncate([0])
    if policy.alone is not None:
        return list(decode([request], policy, large=large if policy.alone == "large" else small))
    drafter = ModelDrafter(small, policy)
    return list(decode([request], policy, large=large, drafter=drafter))


if __name__ == "__main__":
    main()
