"""Average the weights of checkpoints of one shape, for instance of several runs of `bild train` from one beginning.

    python examples/average_checkpoints.py OUT CHECKPOINT:SHARE CHECKPOINT:SHARE …

Shares are more than 0 and are made to add up to 1. All but the weights, and their number format, is the first one's.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


def average(out: str, shares: dict[str, float]) -> None:
    """Write the average.

    Args:
        out: folder of the new checkpoint.
        shares: what each checkpoint counts for, by its folder or hub name.
    """
    first = next(iter(shares))
    try:
        network = AutoModelForSeq2SeqLM.from_pretrained(first)
        kind = AutoModelForSeq2SeqLM
    except ValueError:
        network = AutoModelForCausalLM.from_pretrained(first)
        kind = AutoModelForCausalLM
    total = sum(shares.values())
    sums = {name: torch.zeros(weight.shape) for name, weight in network.state_dict().items()}
    for folder, share in shares.items():
        for name, weight in kind.from_pretrained(folder).state_dict().items():
            sums[name] += share / total * weight.float()
    network.load_state_dict({name: value.to(network.dtype) for name, value in sums.items()})
    network.save_pretrained(out)
    AutoTokenizer.from_pretrained(first).save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    named = [argument.rpartition(":") for argument in sys.argv[2:]]
    average(sys.argv[1], {folder: float(share) for folder, _, share in named})
