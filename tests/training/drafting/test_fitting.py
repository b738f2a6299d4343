"""The guess with which a drafter that reads states begins."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from bild.models.cutting import with_layers
from bild.models.joined import add_joined, join_states
from bild.models.parallel import add_parallel, parallel_head
from bild.models.parts import final_norm
from bild.training.drafting.fitting import fit_joined, fit_parallel
from bild.training.remembering import head_inputs
from tests.networks import build


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_it_is_the_best_linear_one_and_the_layer_behind_it_adds_nothing(name):
    large = build(name, seed=3, layers=2, dtype=torch.float64)
    small = with_layers(large, [1])
    add_joined(small)
    before = {key: weight.clone() for key, weight in large.named_parameters()}
    rng = torch.Generator().manual_seed(1)
    texts = [{"input_ids": torch.randint(2, 30, (1, 40), generator=rng)} for _ in range(60)]
    fit_joined(small, large, texts)
    assert all(torch.equal(weight, before[key]) for key, weight in large.named_parameters())

    @torch.no_grad()
    def missed(weight) -> float:
        """Mean square by which a joining layer misses what stands before the last norm, in its direction."""
        found = []
        for text in texts:
            with final_inputs(large) as made, head_inputs(large) as read:
                large(**text, use_cache=False)
            goal = made[0][0, 1:]
            goal = goal / goal.pow(2).mean(-1, keepdim=True).sqrt()
            joined = torch.cat([large.get_input_embeddings()(text["input_ids"])[0, 1:], read[0][0, :-1]], -1)
            found.append((joined @ weight.T - goal).pow(2).mean())
        return float(torch.stack(found).mean())

    own = small.joined.weight.detach()
    assert missed(own) < 0.9 * missed(torch.zeros_like(own))
    for other in (own + 0.01 * torch.randn(own.shape, generator=rng, dtype=own.dtype), 1.05 * own):
        assert missed(own) < missed(other)
    # The layer behind it adds nothing yet: the last norm's input is the guess, and where positions are added, they.
    text = torch.tensor([[5, 6, 7]])
    states = torch.randn(1, 3, own.shape[0], generator=rng, dtype=own.dtype)
    with torch.no_grad(), final_inputs(small) as made:
        read = join_states(small, text, states)
        small(inputs_embeds=read, use_cache=False)
        places = small.transformer.wpe.weight[:3] if name == "gpt2" else 0
    torch.testing.assert_close(made[0], read + places)


def test_later_places_begin_with_the_best_linear_guess_of_the_guess_of_the_first():
    large = build("llama", seed=3, layers=2, dtype=torch.float64)
    small = with_layers(large, [1])
    add_joined(small)
    add_parallel(small, 3)
    rng = torch.Generator().manual_seed(1)
    texts = [{"input_ids": torch.randint(2, 30, (1, 40), generator=rng)} for _ in range(60)]
    fit_joined(small, large, texts)
    fit_parallel(small, large, texts)

    @torch.no_grad()
    def missed(place: int) -> float:
        """Mean square by which a place misses what the head reads there."""
        found = []
        for text in texts:
            with head_inputs(large) as read:
                large(**text, use_cache=False)
            states = read[0]
            before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
            with head_inputs(small) as made:
                small(inputs_embeds=join_states(small, text["input_ids"], before), use_cache=False)
            guessed = parallel_head(small)(made[0])[0, 1 : 40 - place, place]
            found.append((guessed - states[0, 1 + place :]).pow(2).mean())
        return float(torch.stack(found).mean())

    parts = parallel_head(small).spread
    fitted = [missed(1), missed(2)]
    for part in (parts.weight, parts.bias):
        kept = part.detach().clone()
        part.data = kept + 0.02 * torch.randn(kept.shape, generator=rng, dtype=kept.dtype)
        assert missed(1) > fitted[0] and missed(2) > fitted[1]
        part.data = kept
    parts.weight.data = torch.zeros_like(parts.weight)
    assert missed(1) > fitted[0]


@contextmanager
def final_inputs(network):
    """What the norm in front of the head reads."""
    seen = []
    handle = final_norm(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    yield seen
    handle.remove()
