"""Average the weights of checkpoints of one shape, for instance of several runs of `bild train` from one beginning.

    python examples/average_checkpoints.py OUT CHECKPOINT:SHARE CHECKPOINT:SHARE …

Shares are more than 0 and are made to add up to 1. All but the weights, and their number format, is the first one's.
"""

from __future__ import annotations

import sys

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


def average(out: str, shares: dict[str, float]) -> None:
    """Write the average.

    Args:
        out: folder of the new checkpoint.
        shares: what each checkpoint counts for, by its folder or hub name.
    """
    first = next(iter(shares))
    is_encoder_decoder = AutoConfig.from_pretrained(first).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    networks = [kind.from_pretrained(folder) for folder in shares]
    network, states = networks[0], [each.state_dict() for each in networks]
    total = sum(shares.values())
    parts = [share / total for share in shares.values()]
    # All are computed before any is changed: tied weights are one tensor with several names.
    mean = {
        name: sum(part * state[name].float() for part, state in zip(parts, states, strict=True)) for name in states[0]
    }
    network.load_state_dict(mean)
    network.save_pretrained(out)
    AutoTokenizer.from_pretrained(first).save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    named = [argument.rpartition(":") for argument in sys.argv[2:]]
    average(sys.argv[1], {folder: float(share) for folder, _, share in named})
