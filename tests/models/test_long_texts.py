"""LongRoPE: a text is scored with the frequencies of its own length, whatever it was read in and beside."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM, PreTrainedModel, Qwen2Config

from bild.errors import LoadError
from bild.models import EagerModel, max_positions
from bild.models.early_exit import SplitModel
from tests.networks import VOCAB_SIZE, forward, random_tokens

SWITCH = 16
EXACT = {"rtol": 0.0, "atol": 1e-9}


@cache
def network() -> PreTrainedModel:
    far = [1.0, 3.0, 6.0, 12.0]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": far}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = Phi3Config(
        vocab_size=VOCAB_SIZE,
        **sizes,
        pad_token_id=0,
        max_position_embeddings=128,
        original_max_position_embeddings=SWITCH,
        rope_parameters=rope | {"original_max_position_embeddings": SWITCH},
    )
    torch.manual_seed(0)
    built = Phi3ForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in built.parameters():
            weight.copy_(torch.randn(weight.shape) * (1 if weight.dim() == 1 else 0.4))
    return built


@cache
def model() -> EagerModel:
    return EagerModel(network())


def expected(text: list[int], count: int) -> torch.Tensor:
    """Scores of the last tokens: each as those of a text that ends there."""
    return torch.stack([forward(network(), [], text[:end])[-1] for end in range(len(text) - count + 1, len(text) + 1)])


def test_the_two_sets_of_frequencies_make_a_difference():
    text = random_tokens(Random(0), SWITCH + 1)
    assert (forward(network(), [], text)[SWITCH - 2] - expected(text[: SWITCH - 1], 1)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(4))
def test_rows_cross_in_both_directions_and_know_nothing_of_each_other(seed):
    rng = Random(seed)
    scorer, texts = model().start([[], []]), [[], []]
    for _ in range(25):
        act = rng.random()
        if act < 0.6:
            new = [random_tokens(rng, rng.choice([0, 1, 1, 3, 9])) for _ in texts]
            new[rng.randrange(len(new))] += random_tokens(rng, 1)
            last = rng.randint(1, max(map(len, new)))
            logits = scorer.extend(new, last)
            assert logits.shape == (len(texts), last, VOCAB_SIZE)
            for row, text, more in zip(logits, texts, new, strict=True):
                text += more
                common = min(last, len(more))
                if common:
                    torch.testing.assert_close(row[-common:], expected(text, common), **EXACT)
        elif act < 0.8:
            lengths = [rng.choice([99, max(0, len(text) - rng.randint(1, 6)), 0]) for text in texts]
            scorer.truncate(lengths)
            for text, length in zip(texts, lengths, strict=True):
                del text[length:]
        elif act < 0.9 and len(texts) < 4:
            other, text = model().start([[]]), random_tokens(rng, rng.choice([0, SWITCH - 1, SWITCH + 5]))
            if text:
                other.extend([text])
            scorer.join(other)
            texts.append(text)
        else:
            rows = [rng.randrange(len(texts)) for _ in range(rng.randint(1, 3))]
            scorer.keep(rows)
            texts = [list(texts[b]) for b in rows]
        assert scorer.lengths == [len(text) for text in texts]


def test_texts_past_the_switch_are_those_of_transformers():
    network().config.eos_token_id = None
    ids = torch.tensor([[5, 6, 7]])
    written = (
        network().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)[0].tolist()
    )
    scorer, text = model().start([[]]), [5, 6, 7]
    while len(text) < 33:
        text.append(int(scorer.extend([text[scorer.lengths[0] :]])[0, -1].argmax()))
    assert text == written


def test_texts_end_where_positions_change_in_a_way_that_is_not_known():
    """Phi-3.5-MoE scales its attention by the length of the text, too."""
    far = {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 6.0, 12.0], "short_mscale": 1.1, "long_mscale": 1.4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH, **far}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = PhimoeConfig(
        vocab_size=VOCAB_SIZE, **sizes, num_hidden_layers=1, num_local_experts=2, rope_parameters=rope,
        max_position_embeddings=128,
    )  # fmt: skip
    other = EagerModel(PhimoeForCausalLM(config).eval())
    assert (other.max_positions, other.switches) == (SWITCH, False)
    assert (model().max_positions, model().switches) == (128, True)


def test_it_cannot_be_cut():
    with pytest.raises(LoadError, match="changes its positions with the length of a text and cannot exit early"):
        SplitModel(network(), 1)


LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 64,
    "long_factor": [2.0] * 64,
    "rope_theta": 1e4,
}


@pytest.mark.parametrize(
    ("rope", "stated", "reach"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 32, 32),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 32, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 128, 128),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, 32, 64),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 32, 32),
        (LONG | {"factor": 4.0}, 32, 128),
        (LONG, 128, 128),
    ],
)
def test_how_far_scaled_frequencies_reach(rope, stated, reach):
    assert max_positions(Qwen2Config(max_position_embeddings=stated, rope_parameters=rope)) == reach
