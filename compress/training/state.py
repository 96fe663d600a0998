"""The state of a training: all that changes from step to step, as tensors and plain values for a file."""

import copy
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from compress.training.penalty import GradientPenalty
from compress.training.validation import BEYOND_CHANCE, Validation, standard_errors_better
from compress.training.weight_average import WeightAverage

_COUNTS = ("epoch", "batches", "seen", "total_loss", "correct", "rows", "best_epoch", "best_rank", "micro_batches")
_SCORES = ("best_scores", "last_scores")
_OF_FINISHED = ("network.", "random.", "losses.")


@dataclass
class TrainState:
    """A network, its optimizer and the progress of its training."""

    stage: str
    epochs: int
    steps_per_epoch: int
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    generator: torch.Generator  # draws the order and the augmentation
    part: str = ""  # the training's name in a stage with several
    penalty: GradientPenalty | None = None
    average: WeightAverage | None = None
    micro_batches: int = 1  # in each batch, one computed after the other: what fits into memory
    epoch: int = 1  # the one under way
    order: Tensor | None = None  # (N,) positions of its images; None: not drawn yet
    batches: int = 0  # finished ones of this epoch; the next three count their images
    seen: int = 0
    total_loss: float = 0.0
    correct: float = 0.0  # images with a right decision; the share of right ones where an image has several
    losses: list[float] = field(default_factory=list)  # a step each, from the first epoch on
    rows: list[dict[str, float]] = field(default_factory=list)  # an epoch each
    best_epoch: int = 0
    best_rank: list[float] = field(default_factory=list)  # the smaller, the better; empty before the first epoch's end
    best: dict[str, Tensor] = field(default_factory=dict)  # the network's state after the best epoch
    best_scores: Tensor | None = None  # (N,) of the validation images after it, lower is better
    last_scores: Tensor | None = None  # (N,) after the last epoch
    kept: dict[str, Any] | None = None  # the epoch whose weights the network has, once chosen, and why

    @property
    def name(self) -> str:
        """Returns what messages call the training."""
        return f"{self.stage} ({self.part})" if self.part else self.stage

    @property
    def steps(self) -> int:
        """Returns the number of steps in all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Returns the number of steps taken."""
        return len(self.losses)

    def lr(self, step: int) -> float:
        """Returns the learning rate of a step; the first step is 0."""
        return self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](step)

    def finish_batch(self, loss: float, correct: float, images: int) -> None:
        """Records a step that has been taken."""
        self.losses.append(loss)
        self.batches, self.seen = self.batches + 1, self.seen + images
        self.total_loss, self.correct = self.total_loss + loss * images, self.correct + correct

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Returns a context in which the network has its averaged weights, if they are averaged."""
        return self.average.applied() if self.average else nullcontext()

    def finish_epoch(self, row: dict[str, float], found: Validation) -> None:
        """Records an epoch, and keeps a copy of the network where it is the best so far."""
        rank = [found.scores.mean().item(), found.loss]
        self.last_scores = found.scores
        if not self.best_rank or rank < self.best_rank:
            self.best_epoch, self.best_rank, self.best_scores = self.epoch, rank, found.scores
            self.best = copy.deepcopy(self.network.state_dict())
        self.rows.append(row)
        self.epoch, self.order = self.epoch + 1, None
        self.batches, self.seen, self.total_loss, self.correct = 0, 0, 0.0, 0.0

    def choose_epoch(self) -> dict[str, Any]:
        """Loads the weights of the epoch to keep into the network. Returns its number and why it was chosen.

        By default that is the last epoch, whose learning rate has come down. The best of several noisy epochs is
        seldom truly better, and on few images an early epoch with a high learning rate may seem so.
        """
        if self.kept is None:
            if self.average:
                self.average.copy_to_network()
            self.kept = self._choose_epoch()
        return self.kept

    def _choose_epoch(self) -> dict[str, Any]:
        if self.best_epoch == len(self.rows):
            return {"epoch": self.best_epoch, "reason": "the last, and the best on validation"}
        better = standard_errors_better(self.best_scores, self.last_scores)
        if better <= 0:
            return {"epoch": len(self.rows), "reason": "the last, and none before it is better on validation"}
        measured = f"epoch {self.best_epoch} is {better:.1f} standard errors better on validation"
        if better <= BEYOND_CHANCE:
            return {"epoch": len(self.rows), "reason": f"the last: {measured}, which may be chance"}
        self.network.load_state_dict(self.best)
        return {"epoch": self.best_epoch, "reason": f"not the last: {measured}, more than chance"}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state, by group and name; `restore` needs them and `values`."""
        groups = {"network": self.network.state_dict(), "best": self.best, "random": _random_tensors()}
        groups["random"]["generator"] = self.generator.get_state()
        groups["losses"] = {"steps": torch.tensor(self.losses, dtype=torch.float64)}
        if self.order is not None:
            groups["order"] = {"images": self.order}
        groups["scores"] = {name: getattr(self, name) for name in _SCORES if getattr(self, name) is not None}
        for index, kept in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer.{index}"] = kept
        groups["penalty"] = self.penalty.tensors() if self.penalty else {}
        groups["average"] = self.average.tensors() if self.average else {}
        return {f"{group}.{name}": value for group, named in groups.items() for name, value in named.items()}

    def finished_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that `restore` needs once the epoch to keep is chosen."""
        return {name: value for name, value in self.tensors().items() if name.startswith(_OF_FINISHED)}

    def values(self) -> dict[str, Any]:
        """Returns the rest of the state, as plain values for JSON."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return counts | {"kept": self.kept, "schedule": self.schedule.state_dict(), "random": _random_values()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restores what `tensors` and `values` returned, into a newly built network, optimizer and schedule."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = value
        for name in _COUNTS:
            setattr(self, name, values[name])
        self.kept = values["kept"]
        self.network.load_state_dict(groups["network"])
        self.best = groups.get("best", {})
        for name in _SCORES:
            setattr(self, name, groups.get("scores", {}).get(name))
        self.losses = groups["losses"]["steps"].tolist()
        self.order = groups["order"]["images"] if "order" in groups else None
        self.generator.set_state(groups["random"]["generator"])
        _restore_random(groups["random"], values["random"])
        self._restore_optimizer(groups.get("optimizer", {}))
        if self.penalty and "penalty" in groups:
            self.penalty.load(groups["penalty"])
        if self.average and "average" in groups:  # not where the epoch to keep is chosen
            self.average.load(groups["average"])
        self.schedule.load_state_dict(values["schedule"])
        for settings, lr in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            settings["lr"] = lr

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Loads the optimizer's state in channels_last, as gradients are: another order makes steps slower."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, rest = name.partition(".")
            laid_out = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            state.setdefault(int(index), {})[rest] = laid_out
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def _random_tensors() -> dict[str, Tensor]:
    """Returns the random states of torch, NumPy and Python, as bytes."""
    _, python, _ = random.getstate()
    _, numpy, *_ = _numpy_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy.view(np.uint8)),
        "python": torch.from_numpy(np.array(python, np.uint32).view(np.uint8)),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _random_values() -> dict[str, Any]:
    """Returns the parts of the random states that are no bytes: positions, and normal numbers drawn in advance."""
    version, _, drawn = random.getstate()
    name, _, *rest = _numpy_state()
    return {"python": [version, drawn], "numpy": [name, *rest]}


def _numpy_state() -> tuple[str, np.ndarray, int, int, float]:
    """Returns the name of NumPy's generator, its keys, its position, and the normal number drawn in advance."""
    return cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())  # a dict only if asked for one


def _restore_random(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    version, drawn = values["python"]
    name, *rest = values["numpy"]
    random.setstate((version, tuple(tensors["python"].numpy().view(np.uint32).tolist()), drawn))
    np.random.set_state((name, tensors["numpy"].numpy().view(np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(tensors["cuda"])
