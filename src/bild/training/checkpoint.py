"""A run on disk: the state it can go on from, and the checkpoint it came to. No pickle: safetensors and JSON.

OUT/run.json                        what the run was asked for
OUT/log.jsonl                       a line every few steps and after every dev score
OUT/step-1200/                      the newest state: a checkpoint, optimizer.safetensors, state.json
OUT/model.safetensors, config.json, …, training.json      the result so far
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.data import claim
from bild.data.files import write_whole
from bild.data.json_text import from_json, to_json
from bild.errors import InputError, one_line
from bild.models import write_short_list
from bild.models.short_list import FILE as SHORT_LIST

RUN, LOG, PROVENANCE, STATE, OPTIMIZER = "run.json", "log.jsonl", "training.json", "state.json", "optimizer.safetensors"
RESULT, TOKENIZER = "model.safetensors", "tokenizer"


@dataclass
class State:
    """How far a run is."""

    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Target tokens trained on."""
    seconds: float = 0.0
    """Spent training and scoring."""
    best: float | None = None
    """Highest dev score."""
    best_step: int | None = None
    worse: int = 0
    """Dev scores since the best."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Every dev score: step, metric by set, mean."""
    finished: bool = False


class RunFolder:
    """The folder of a training run.

    Args:
        path: created where it is missing.
        settings: everything the result depends on, as plain JSON values.
        fresh: delete what an earlier run left.
        short_list: of the network, kept beside every checkpoint; None: it has none.

    Raises:
        InputError: the folder holds another run, or cannot be written.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], *, fresh: bool = False, short_list: Sequence[int] | None = None
    ) -> None:
        self.path, self.short_list = path, short_list
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._held = claim(path / RUN, settings, path / RESULT, clear=self._clear if fresh else None)
            for unfinished in path.glob("*.partial"):
                shutil.rmtree(unfinished)

    def newest(self) -> Path | None:
        """The state to go on from, None for a new run."""
        return max(self.path.glob("step-*[0-9]"), key=lambda place: int(place.name.removeprefix("step-")), default=None)

    def finished(self) -> State | None:
        """What a run that is done came to, else None."""
        return finished(self.path)

    def save_state(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        state: State,
        provenance: dict[str, Any],
    ) -> None:
        """Write a state to go on from, then drop the one before: a kill leaves one of them whole."""
        place = self.path / f"step-{state.step}"
        partial = place.with_name(place.name + ".partial")
        with writing(self.path):
            self._save(network, tokenizer, partial)
            tensors, numbers = _split(optimizer.state_dict()["state"])
            random = {"random.cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                random["random.cuda"] = torch.cuda.get_rng_state()
            save_file(tensors | random, partial / OPTIMIZER)
            # Peak rates are saved: those of embeddings came from the size the weights began with, which is gone.
            rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
            _write_json(partial / STATE, {"state": asdict(state), "optimizer": numbers, "rates": rates})
            _write_json(partial / PROVENANCE, provenance)
            partial.rename(place)
            for other in self.path.glob("step-*[0-9]"):
                if other != place:
                    shutil.rmtree(other)

    def save_result(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, provenance: dict[str, Any]
    ) -> None:
        """Write the checkpoint this run is for, each file replaced in one step."""
        partial = self.path / "result.partial"
        with writing(self.path):
            self._save(network, tokenizer, partial)
            _write_json(partial / PROVENANCE, provenance)
            # Provenance last: it says that the rest is there.
            for file in sorted(partial.iterdir(), key=lambda file: file.name == PROVENANCE):
                os.replace(file, self.path / file.name)
            partial.rmdir()

    def _save(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Path) -> None:
        network.save_pretrained(place)
        tokenizer.save_pretrained(place)
        if self.short_list is not None:
            write_short_list(place, self.short_list)

    def finish(self, provenance: dict[str, Any]) -> None:
        """Say that the run is done and drop the state it could have gone on from."""
        with writing(self.path):
            _write_json(self.path / PROVENANCE, provenance)
        for state in self.path.glob("step-*[0-9]"):
            shutil.rmtree(state)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to the log."""
        with writing(self.path), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")

    def forget_log_after(self, state: State) -> None:
        """Drop the lines of what a killed run did after its last state: steps, and a score at its end."""
        file = self.path / LOG
        if not file.exists():
            return
        scored = {score["step"] for score in state.scores}
        with writing(self.path):
            every = file.read_bytes().splitlines(keepends=True)
            lines = [line for line in every if _is_before(line, state.step, scored)]
            write_whole(file, b"".join(lines).decode())

    def _clear(self) -> None:
        for name in (RUN, LOG, PROVENANCE, RESULT, SHORT_LIST):
            (self.path / name).unlink(missing_ok=True)
        for folder in (*self.path.glob("step-*"), *self.path.glob(TOKENIZER)):
            shutil.rmtree(folder)


def finished(folder: Path) -> State | None:
    """What a run that is done in this folder came to, else None."""
    try:
        state = State(**from_json((folder / PROVENANCE).read_bytes())["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if state.finished else None


@dataclass
class Resumed:
    """What a run goes on from."""

    place: Path
    state: State
    optimizer: dict[int, dict[str, Any]]
    rates: list[float]
    """Peak learning rate of each group of weights."""
    random: dict[str, Tensor]

    @classmethod
    def newest(cls, folder: RunFolder) -> Resumed | None:
        """The newest state of a folder, None for a new run.

        Raises:
            InputError: it is damaged.
        """
        place = folder.newest()
        if place is None:
            return None
        try:
            values = from_json((place / STATE).read_bytes())
            tensors = load_file(place / OPTIMIZER)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{place} is damaged ({one_line(error)}); start anew with --fresh") from None
        random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")}
        state: dict[int, dict[str, Any]] = {}
        for name, value in [*tensors.items(), *values["optimizer"].items()]:
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        return cls(place, State(**values["state"]), state, values["rates"], random)

    def restore_random_numbers(self) -> None:
        """Go on drawing where the killed run was."""
        torch.set_rng_state(self.random["random.cpu"])
        if "random.cuda" in self.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random["random.cuda"])

    def restore_optimizer(self, optimizer: Optimizer) -> None:
        """Fill an optimizer of the same weights."""
        optimizer.load_state_dict(optimizer.state_dict() | {"state": self.optimizer})
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """One line for whatever keeps a file from being written.

    Raises:
        InputError: it could not be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"cannot write {place} ({why}); make room and run the same command again: it goes on"
        ) from None


def _split(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimizer's state, and its plain numbers, by ``"7.exp_avg"``."""
    named = {f"{number}.{key}": value for number, own in state.items() for key, value in own.items()}
    tensors = {name: value.contiguous() for name, value in named.items() if isinstance(value, Tensor)}
    return tensors, {
        name: value for name, value in named.items() if not isinstance(value, Tensor) and value is not None
    }


def _write_json(file: Path, values: dict[str, Any]) -> None:
    write_whole(file, to_json(values, indent=2) + "\n")


def _is_before(line: bytes, step: int, scored: Collection[int]) -> bool:
    """Whether a line of the log is about a step up to this one, or a score of one of those."""
    try:
        values = from_json(line)
        return bool(values["step"] in scored if "metric" in values else values["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
