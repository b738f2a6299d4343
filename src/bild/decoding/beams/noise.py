"""What decides which continuations of a beam search are drawn: noise of each hypothesis and token.

The ``K`` largest sums of score and Gumbel noise are a draw of ``K`` without replacement by the softmax of the scores
(Kool et al. 2019, arXiv 1903.06059). The noise belongs to the tokens before, whoever reads them, so both models, and
a model that reads them again, draw with the same numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from bild.decoding.history import seed_of


class Noise:
    """Of one text.

    Args:
        generator: whose seed it follows from; None: torch's global one gives a seed.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._seed = (seed_of(generator) % 2**64).to_bytes(8, "little")

    def after(self, texts: Sequence[Sequence[int]], size: int) -> Tensor:
        """Standard Gumbel noise ``[N, V]`` in float64 of the tokens that may come next; the same whenever asked for.

        Args:
            texts: tokens of each hypothesis.
            size: of the vocabulary; the noise of a smaller one is the beginning of a larger one's.
        """
        uniform = torch.stack([self._uniform(tokens, size) for tokens in texts])
        return uniform.clamp_(min=torch.finfo(torch.float64).tiny).log_().neg_().log_().neg_()

    def _uniform(self, tokens: Sequence[int], size: int) -> Tensor:
        seed = int.from_bytes(blake2b(array("q", tokens).tobytes(), digest_size=8, key=self._seed).digest(), "little")
        return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
