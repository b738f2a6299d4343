"""A tiny chat pair: random Llamas, words as tokens, and a template that can be followed by hand."""

from __future__ import annotations

from functools import cache

import torch

from bild import BigLittleDecoder
from tests.networks import build, perturbed, word_tokenizer

TEMPLATE = (
    "{% for turn in messages %}{{ 'w2' if turn.role == 'user' else 'w3' }} {{ turn.content }} "
    "{% if turn.role == 'assistant' %}</s> {% endif %}{% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
"""``w2`` before what the user says, ``w3`` before an answer and an end behind it."""
USER, ASSISTANT = 2, 3


@cache
def chat_pair(positions: int = 64, template: str | None = TEMPLATE) -> BigLittleDecoder:
    """A Llama and a noisy copy of it, which agree often and not always."""
    large = build("llama", seed=1, dtype=torch.float32, max_position_embeddings=positions)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return BigLittleDecoder(large, perturbed(large, 0.15), tokenizer)
