"""Presets, what may be changed of them, and the learning rate over time."""

from __future__ import annotations

import pytest

from bild.errors import InputError
from bild.training import Recipe


def test_the_papers_recipe():
    paper = Recipe.preset("paper")
    assert (paper.optimizer, paper.schedule, paper.batch_size, paper.batch_tokens) == (
        "adafactor",
        "constant",
        16,
        None,
    )
    assert (paper.max_steps, paper.epochs, paper.dropout) == (500_000, None, None)
    assert [paper.rate(step, 500_000) for step in (0, 250_000, 499_999)] == [1.0, 1.0, 1.0]


def test_what_is_given_replaces_its_rival():
    assert (Recipe.preset("fast").epochs, Recipe.preset("fast").batch_tokens) == (5, 3600)
    changed = Recipe.preset("fast", max_steps=7, batch_size=4, lr=None)
    assert (changed.max_steps, changed.epochs, changed.batch_size, changed.batch_tokens) == (7, None, 4, None)
    both = Recipe.preset("paper", max_steps=7, epochs=2)
    assert (both.max_steps, both.epochs) == (7, 2)


def test_the_rate_climbs_and_falls_to_a_hundredth():
    recipe = Recipe.preset("fast", warmup_steps=4)
    assert [recipe.rate(step, 104) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert recipe.rate(54, 104) == pytest.approx(0.505)
    assert recipe.rate(104, 104) == pytest.approx(0.01)
    assert Recipe.preset("fast").rate(0, 100) == pytest.approx(1 / 6)
    assert Recipe.preset("fast").rate(0, 100_000) == pytest.approx(1 / 501)


def test_trained_weights_begin_slower():
    recipe = Recipe.preset("fast")
    assert (recipe.for_weights(trained=False).lr, recipe.for_weights(trained=True).lr) == (1e-3, 3e-4)
    assert Recipe.preset("fast", lr=0.5).for_weights(trained=True).lr == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.0}, "lr is 0.0; allowed is more than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 0}, "epochs is 0; allowed is 1 or more"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"batch_tokens": 5, "batch_size": 5}, "batch_tokens or batch_size, not both"),
        ({"dropout": 1.5}, "dropout is 1.5; allowed is 0 to 1"),
        ({"r_drop": -1.0, "dropout": 0.1}, "r_drop is -1.0; allowed is 0 or more"),
        ({"r_drop": 5.0}, "r_drop is 5.0 and dropout 0; without dropout two passes are alike"),
        ({"r_drop": 5.0, "dropout": 0.1, "loss": "calm"}, "r_drop is 5.0, the loss calm"),
        ({"r_drop": 5.0, "dropout": 0.1, "distill": 0.5}, "r_drop goes with labels alone"),
        ({"loss": "mean"}, "loss is 'mean'; allowed is last, early-exit, calm"),
        ({"loss": "early-exit"}, "needs exit_layer"),
        ({"exit_layer": 1}, "needs exit_layer"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_out_of_range(changes, says):
    with pytest.raises(InputError, match=says):
        Recipe.preset("fast", **changes)


def test_unknown_recipes():
    with pytest.raises(InputError, match="recipe is 'slow'; allowed are fast, paper"):
        Recipe.preset("slow")
