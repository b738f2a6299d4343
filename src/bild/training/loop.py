"""The training loop: transformers' Trainer with batches, optimizer and loss of ours, and states to go on from."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bild.errors import InputError, one_line
from bild.training.checkpoint import Resumed, State
from bild.training.losses import Objective, targets_in
from bild.training.optimizer import make_optimizer
from bild.training.progress import say
from bild.training.recipe import Recipe
from bild.training.recording import Recorder

WINDOW = 50
"""Steps whose time tells how many more there will be."""
SHOWN = 5
"""Lines of a failed batch that are named."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does, and when.

    Args:
        folder: of the run.
        recipe: with its learning rate settled.
        steps: optimizer steps of the whole run, if the recipe's time is not over before.
        batches: the examples of each step still to do.
        collate: numbers of examples to tensors.
        places: where each example is from.
        log_every: steps between lines of progress.
        eval_every: steps between dev scores.
        save_minutes: time between states.
        is_recorded: whether a step is recorded for each shape of batch (:mod:`bild.training.recording`).
        on_log: told step, loss, rate, speed.
        on_eval: scores the network as it is, but not after the last step; whether to stop.
        on_save: writes a state.
    """

    folder: Path
    recipe: Recipe
    steps: int
    batches: Sampler[list[int]]
    collate: Callable[[Sequence[int]], dict[str, Tensor]]
    places: Sequence[str]
    log_every: int
    eval_every: int | None
    save_minutes: float
    is_recorded: bool
    on_log: Callable[[dict[str, float]], None]
    on_eval: Callable[[], bool]
    on_save: Callable[[Any], None]


def run(objective: Objective, plan: Plan, state: State, resumed: Resumed | None, device: torch.device) -> None:
    """Train until the last step or until a dev score says stop; ``state`` and the weights change in place.

    Raises:
        InputError: a loss or gradient that is not a number; the weights are those before it.
    """
    arguments = TrainingArguments(
        output_dir=str(plan.folder),
        max_steps=plan.steps - state.step,
        max_grad_norm=plan.recipe.clip,
        seed=plan.recipe.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        # Every loss is looked at here; a second look would wait for the device once more.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    # Several GPUs in one process would each get a slice of a batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = _Trainer(objective, arguments, plan, state, resumed)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(trainer))
    # A layer that cannot be compiled runs as it is.
    with torch._dynamo.config.patch(suppress_errors=True):
        trainer.train()


class _Trainer(Trainer):
    """The Trainer with our parts. It sees the steps that are left only: the schedule knows where they begin."""

    def __init__(
        self, objective: Objective, arguments: TrainingArguments, plan: Plan, state: State, resumed: Resumed | None
    ) -> None:
        super().__init__(model=objective, args=arguments)
        self.objective: Objective = objective
        self.plan, self.progress, self.resumed = plan, state, resumed
        self.counts = _Counts()
        self.horizon = Horizon(plan.steps, plan.recipe.max_minutes, state)
        self.recorder = Recorder(objective) if plan.is_recorded else None

    def get_train_dataloader(self) -> DataLoader[Any]:
        numbers: Any = range(len(self.plan.places))
        loader = DataLoader[Any](numbers, batch_sampler=self.plan.batches, collate_fn=self.plan.collate)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.objective.network, self.plan.recipe)
            if self.resumed is not None:
                self.resumed.restore_optimizer(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        assert self.optimizer is not None
        first = self.progress.step
        rate = self.plan.recipe.rate
        self.lr_scheduler = LambdaLR(self.optimizer, lambda step: rate(first + step, self.horizon.steps()))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        rows = inputs.pop("rows")
        tokens = targets_in(inputs["labels"])
        self.counts.tokens += tokens
        self.progress.tokens += tokens
        loss = self._recorded(model, inputs)
        if loss is None:
            loss = super().training_step(model, inputs | {"rows": rows}, num_items_in_batch)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # Both numbers in one transfer: a device is waited for once a step.
        value, norm = torch.stack([loss.float(), torch.nn.utils.get_total_norm(gradients).float()]).tolist()
        if not math.isfinite(value + norm):
            raise InputError(self._not_a_number(value, rows.tolist()))
        self.counts.loss += value
        return loss

    def _recorded(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        """The loss of a recorded step; None where steps are not recorded."""
        if self.recorder is None:
            return None
        # As the Trainer's own step does; a checkpoint comes without dropout.
        model.train()
        try:
            return self.recorder(inputs)
        except RuntimeError as error:
            # A network that asks its device for a number as it computes, or too little memory.
            say(f"steps are not recorded, which is slower: {one_line(error)}")
            self.recorder = None
            return None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        loss: Tensor = model(**inputs)
        return loss

    def _not_a_number(self, loss: float, rows: list[int]) -> str:
        places = [self.plan.places[row] for row in rows]
        named = ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
        kind = "gradient" if math.isfinite(loss) else "loss"
        return (
            f"the {kind} is not a number at step {self.progress.step + 1}; its batch is {named}; "
            "try a lower --lr, --dtype float32, or leave these lines out; the last state is kept"
        )


class Horizon:
    """How many steps a run will have taken at its end.

    Args:
        most: steps it ends after.
        minutes: time it ends after; None: as long as it takes.
        state: how far it is; read, not changed.
    """

    def __init__(self, most: int, minutes: float | None, state: State) -> None:
        self.most, self.minutes, self.state = most, minutes, state
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def took(self, seconds: float) -> None:
        """A step took so long."""
        self.recent.append(seconds)

    def steps(self) -> int:
        """As far as the last steps tell: the median, since some of them compile."""
        if self.minutes is None:
            return self.most
        done, left = self.state.step, max(0.0, 60 * self.minutes - self.state.seconds)
        if self.recent:
            more = left / max(1e-9, statistics.median(self.recent))
        else:
            more = done * left / self.state.seconds if self.state.seconds else self.most
        return min(self.most, done + int(more))

    def is_reached(self) -> bool:
        """Whether this was the last step."""
        is_late = self.minutes is not None and self.state.seconds >= 60 * self.minutes
        return is_late or self.state.step >= self.most


@dataclass
class _Counts:
    """Since the last line of progress."""

    steps: int = 0
    tokens: int = 0
    loss: float = 0.0
    since: float = field(default_factory=time.perf_counter)


class _Watch(TrainerCallback):
    """Progress, dev scores and states, between steps."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer, self.plan, self.progress = trainer, trainer.plan, trainer.progress
        self.saved = self.measured = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        resumed, self.trainer.resumed = self.trainer.resumed, None
        if resumed is not None:
            # Only now: what prepares the loop draws random numbers too.
            resumed.restore_random_numbers()

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        plan, progress, horizon = self.plan, self.progress, self.trainer.horizon
        progress.step += 1
        self.trainer.counts.steps += 1
        horizon.took(self._time())
        last = horizon.is_reached()
        if last or progress.step % plan.log_every == 0:
            self._log()
        stop = False
        # After the last step the state is written first: what comes then may be killed and loses nothing.
        if plan.eval_every is not None and not last and progress.step % plan.eval_every == 0:
            stop = plan.on_eval()
            self._pause()
        if last or stop or time.perf_counter() - self.saved >= 60 * plan.save_minutes:
            plan.on_save(self.trainer.optimizer)
            self.saved = time.perf_counter()
            self._pause()
        control.should_training_stop = control.should_training_stop or stop or last

    def _log(self) -> None:
        counts, progress = self.trainer.counts, self.progress
        took = time.perf_counter() - counts.since
        steps = self.trainer.horizon.steps()
        self.plan.on_log(
            {
                "step": progress.step,
                "loss": counts.loss / counts.steps,
                "lr": self.plan.recipe.rate(progress.step - 1, steps) * (self.plan.recipe.lr or 0.0),
                "tokens_per_second": counts.tokens / took,
                "seconds_left": took / counts.steps * (steps - progress.step),
            }
        )
        self.trainer.counts = _Counts()

    def _pause(self) -> None:
        """What was not training does not count for its speed."""
        self.trainer.counts.since += self._time()

    def _time(self) -> float:
        """Add the seconds since the last call to the run's."""
        now = time.perf_counter()
        took, self.measured = now - self.measured, now
        self.progress.seconds += took
        return took
