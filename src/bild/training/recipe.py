"""How a network is trained, as numbers: two presets, and what the user changes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from bild.errors import InputError

LOSSES = ("last", "early-exit", "calm")
TRAINED = ("all", "decoder")
LR_NEW, LR_CONTINUED = 1e-3, 3e-4
"""Learning rates of the fast recipe: random weights, and weights that have been trained."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about training that is neither the network nor the data.

    Args:
        optimizer: ``"muon"``: Muon for the 2-D weights of hidden layers, AdamW for the rest;
            ``"adafactor"``: as T5 was trained.
        lr: peak learning rate, above 0; None: 1e-3 for random weights, 3e-4 for trained ones.
        schedule: ``"cosine"``: down to 1 % of the peak; ``"constant"``.
        warmup_steps: steps in which the rate climbs from 0, 0…; None: a twentieth of all, at most 500.
        batch_tokens: padded positions in a batch, source and target; batches hold texts of like length.
        batch_size: examples in a batch instead, taken at random.
        max_steps: most optimizer steps, 1…; None: no bound.
        epochs: passes over the data, 1…; None: no bound.
        max_minutes: time of the run, all dev scores but the last included, above 0; the schedule is fitted to the
            steps that it will do, as far as the last ones tell; None: no bound.
        label_smoothing: share of the probability spread over all tokens, 0…1. Lowers confidence,
            which the fallback threshold is compared with.
        dropout: 0…1; None: as the network's configuration says. On a CPU the random numbers cost
            a third of a step, and few epochs do not need it.
        r_drop: weight of the distance between what two passes with different dropout make of a batch, 0…: a step
            takes twice as long (Liang et al. 2021, who take 5 for translation).
        weight_decay: of hidden weights, 0….
        clip: largest norm of the gradient, above 0.
        loss: ``"last"``, ``"early-exit"`` or ``"calm"``, see :mod:`bild.training.losses`.
        exit_layer: decoder layer of the early exit, counted from 1.
        distill: share of the loss that compares whole distributions with the large model's instead of tokens
            with its labels, 0…1; above 0 in :func:`bild.training.align` alone.
        trains: ``"all"``; ``"decoder"``: all but what the encoder holds, with it the embeddings and a head tied to
            them, so that the large model whose encoder it is can encode for both.
        seed: of random weights, of the order of examples and of dropout.

    Raises:
        InputError: a value out of range.
    """

    optimizer: str = "muon"
    lr: float | None = None
    schedule: str = "cosine"
    warmup_steps: int | None = None
    batch_tokens: int | None = 3600
    batch_size: int | None = None
    max_steps: int | None = None
    epochs: int | None = None
    max_minutes: float | None = None
    label_smoothing: float = 0.0
    dropout: float | None = 0.0
    r_drop: float = 0.0
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: str = "last"
    exit_layer: int | None = None
    distill: float = 0.0
    trains: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, valid in RANGES:
            value = getattr(self, name)
            if value is not None and not valid(value):
                raise InputError(f"{name} is {value!r}; allowed is {allowed}")
        if (self.loss == "early-exit") != (self.exit_layer is not None):
            raise InputError("the early-exit loss needs exit_layer, the decoder layer to leave at, and no other does")
        if self.distill and self.loss != "last":
            raise InputError(
                f"distill is {self.distill} and the loss {self.loss}; inner layers learn from labels alone"
            )
        if self.r_drop and (self.loss != "last" or self.distill):
            raise InputError(
                f"r_drop is {self.r_drop}, the loss {self.loss}, distill {self.distill}; r_drop goes with labels alone"
            )
        if self.trains != "all" and self.loss != "last":
            raise InputError(f"trains is {self.trains} and the loss {self.loss}; inner layers are trained with all")
        if self.r_drop and self.dropout == 0:
            raise InputError(f"r_drop is {self.r_drop} and dropout 0; without dropout two passes are alike")
        if (self.batch_tokens is None) == (self.batch_size is None):
            raise InputError("give batch_tokens or batch_size, not both")
        if self.max_steps is None and self.epochs is None and self.max_minutes is None:
            raise InputError("training has no end; give max_steps, epochs or max_minutes")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A preset with some values changed; None changes nothing.

        Args:
            name: ``"fast"``, or ``"paper"``: Kim et al. 2023, section 4.1.
            changes: fields of the recipe.

        Raises:
            InputError: an unknown name or a value out of range.
        """
        if name not in PRESETS:
            raise InputError(f"recipe is {name!r}; allowed are {', '.join(PRESETS)}")
        given = {key: value for key, value in changes.items() if value is not None}
        if given.keys() & {"batch_tokens", "batch_size"}:
            given = {"batch_tokens": None, "batch_size": None} | given
        if given.keys() & {"max_steps", "epochs", "max_minutes"}:
            given = {"max_steps": None, "epochs": None} | given
        return cls(**PRESETS[name] | given)

    def for_weights(self, *, trained: bool) -> Recipe:
        """The recipe with its learning rate settled."""
        return self if self.lr is not None else replace(self, lr=LR_CONTINUED if trained else LR_NEW)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate after ``step`` of ``steps``, as a share of its peak."""
        warmup = min(500, steps // 20) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"epochs": 5},
    "paper": {
        "optimizer": "adafactor",
        "lr": 1e-4,
        "schedule": "constant",
        "warmup_steps": 0,
        "batch_tokens": None,
        "batch_size": 16,
        "max_steps": 500_000,
        "dropout": None,
        "weight_decay": 0.0,
    },
}

RANGES: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("optimizer", "muon or adafactor", lambda v: v in ("muon", "adafactor")),
    ("lr", "more than 0", lambda v: 0 < v < math.inf),
    ("schedule", "cosine or constant", lambda v: v in ("cosine", "constant")),
    ("warmup_steps", "0 or more", lambda v: v >= 0),
    ("batch_tokens", "1 or more", lambda v: v >= 1),
    ("batch_size", "1 or more", lambda v: v >= 1),
    ("max_steps", "1 or more", lambda v: v >= 1),
    ("epochs", "1 or more", lambda v: v >= 1),
    ("max_minutes", "more than 0", lambda v: 0 < v < math.inf),
    ("label_smoothing", "0 to 1", lambda v: 0 <= v <= 1),
    ("dropout", "0 to 1", lambda v: 0 <= v <= 1),
    ("r_drop", "0 or more", lambda v: 0 <= v < math.inf),
    ("weight_decay", "0 or more", lambda v: 0 <= v < math.inf),
    ("clip", "more than 0", lambda v: v > 0),
    ("loss", ", ".join(LOSSES), lambda v: v in LOSSES),
    ("exit_layer", "1 or more", lambda v: v >= 1),
    ("distill", "0 to 1", lambda v: 0 <= v <= 1),
    ("trains", ", ".join(TRAINED), lambda v: v in TRAINED),
    # transformers' Trainer hands it to numpy.
    ("seed", "0 to 2^32 - 1", lambda v: 0 <= v < 2**32),
]
