"""The one training loop: a stage brings its network and its loss, and the best epoch's weights stay in the network."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from signal import Signals

import torch
from torch import nn

from compress.config import TrainConfig
from compress.console import Bar, progress
from compress.context import Context
from compress.data.splits import Examples, Split
from compress.devices import Ranks, Relieved
from compress.errors import Stopped, UserError
from compress.floors import require_hope
from compress.heap import kept_memory
from compress.lean import lean
from compress.signals import stop_requests
from compress.step import Loss, Step, agree_on_parts, in_parts, split_batch
from compress.training import Training

log = logging.getLogger(__name__)


def train(
    network: nn.Module,
    loss: Loss,
    context: Context,
    name: str,
    epochs: int,
    lr: float,
    before_epoch: Callable[[int], None] = lambda epoch: None,
    lr_shares: dict[str, float] | None = None,
) -> list[dict[str, float]]:
    """Trains `network` in place, keeps the epoch with the best validation accuracy, returns a row an epoch.

    The learning rate rises to `lr` over `train.warmup` of the steps and falls to 0 along a cosine. The network ends in
    eval mode. A training that `context.checkpoint` holds goes on behind its last step; `before_epoch` must then do for
    its epoch what the calls for those before it did. `lr_shares` tells of each parameter which share of the learning
    rate it gets; the largest is 1. Each of `context.ranks` takes its part of every batch; all end with the same
    weights, and those that do not lead leave their stage by `Relieved`. Raises UserError, which names the step, where
    a loss or a weight is not finite, GivenUp below one of `context.floors`, and Stopped once a signal has come and the
    state is saved.
    """
    network.to(context.device, memory_format=torch.channels_last)
    ranks, checkpoint = context.ranks, context.checkpoint
    training = _begin(network, context, name, epochs, lr, lr_shares)
    requests = stop_requests() if checkpoint else nullcontext([])
    if ranks.world > 1:
        agree_on_parts(training, loss, context)
    with (
        progress(name, training.steps, training.step) as bar,
        requests as signals,
        kept_memory(),
        lean(network),
        ranks.joined(network) as joined,
    ):

        def keep() -> None:
            """Saves the state where it is time, or where a signal has come: then it ends the run."""
            due = bool(checkpoint) and ranks.leads and checkpoint.is_due()
            signal, due = ranks.largest(signals[0] if signals else 0, due)
            if signal or due:
                _require_finite_weights(training)
                if ranks.leads:
                    checkpoint.save(training.tensors(), training.values())
            if signal:
                where = f" after step {training.step} of {training.steps} of {name}; its state is saved"
                raise Stopped(Signals(int(signal)), where)

        while training.epoch <= epochs:
            network.train()
            before_epoch(training.epoch)
            _finish_steps(training, joined, loss, context, keep, bar)
            _finish_epoch(training, context, keep, bar)
            keep()
    if not ranks.leads:
        raise Relieved
    if training.parts > 1:
        context.notes["out_of_memory"] = in_parts(training.parts)
    if training.best:
        network.load_state_dict(training.best)
        log.info("%s: kept epoch %d, the best on validation", name, training.best_epoch)
    network.eval()
    return training.rows


def validate(
    network: nn.Module,
    split: Split,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
    parts: int = 1,
) -> tuple[float, float]:
    """Mean cross-entropy, and top-1 in percent; in float32, each batch in so many parts.

    Several processes share the images; `after_batch` is then not called, as their numbers of batches may differ.
    """
    ranks = ranks or Ranks()
    network.eval()
    total, correct = 0.0, 0
    with torch.no_grad():
        for batch in split.batches(ranks.part):
            for images, labels in split_batch(batch, parts):
                logits, labels = network(to_device(images, device)), labels.to(device)
                total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum())
            if ranks.world == 1:
                after_batch()
    total, correct = ranks.sums(total, correct)
    return total / len(split), 100 * correct / len(split)


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images (N, C, H, W) in channels_last: convolutions on the CPU run about twice as fast so."""
    return images.to(device, memory_format=torch.channels_last)


def _begin(
    network: nn.Module, context: Context, name: str, epochs: int, lr: float, lr_shares: dict[str, float] | None
) -> Training:
    """A training before its first step, or as it was when it was saved, with its curves written up to there."""
    an_epoch = context.data.train.steps()
    optimizer = _optimizer(network, lr, context.train, lr_shares or {})
    factor = lambda step: _lr_factor(step, epochs * an_epoch, context.train.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(context.seed)
    training = Training(name, epochs, an_epoch, network, optimizer, schedule, generator)
    saved = context.ranks.in_turn(context.checkpoint.load) if context.checkpoint else None
    if saved:
        training.restore(*saved)
        for step, value in enumerate(training.losses):
            context.curves.step(step, loss=value, learning_rate=training.lr(step))
        for epoch, row in enumerate(training.rows, 1):
            context.curves.epoch(epoch, **row)
        log.info("%s: goes on after step %d of %d", name, training.step, training.steps)
    return training


def _finish_steps(
    training: Training, joined: nn.Module, loss: Loss, context: Context, keep: Callable[[], None], bar: Bar
) -> None:
    """The steps that are left of the epoch under way: all of them, some, or none."""
    generator, split, ranks = training.generator, context.data.train, context.ranks
    step = Step(training, joined, loss, context)
    if training.order is None:
        training.order = split.shuffle(generator)
    augmented = split.augmented(training.order, generator, context.data.augmentation, training.batches, ranks.part)
    for examples, count in augmented:
        images, labels = to_device(examples.images, context.device), examples.labels.to(context.device)
        value, correct = ranks.sums(*step.gradients(Examples(images, labels, examples.positions), count))
        _require_finite("a loss", value, training.step + 1, training)
        training.optimizer.step()
        context.curves.step(training.step, loss=value, learning_rate=training.lr(training.step))
        training.schedule.step()
        training.finish_batch(value, int(correct), count)
        bar.advance()
        keep()


def _finish_epoch(training: Training, context: Context, keep: Callable[[], None], bar: Bar) -> None:
    """Validates, and records and tells the epoch's figures. Raises UserError and GivenUp as `train` says."""
    val_loss, val_top1 = validate(
        training.network, context.data.val, context.device, keep, context.ranks, training.parts
    )
    _require_finite("a validation loss", val_loss, training.step, training)
    row = {
        "train_loss": training.total_loss / training.seen,
        "train_top1_percent": 100 * training.correct / training.seen,
        "val_loss": val_loss,
        "val_top1_percent": val_top1,
    }
    training.finish_epoch(row, [val_top1, -val_loss])
    context.curves.epoch(len(training.rows), **row)
    figures = f"loss {row['train_loss']:.3f}, train {row['train_top1_percent']:.2f} %, val {val_top1:.2f} %"
    log.info("%s: epoch %d of %d, %s", training.name, len(training.rows), training.epochs, figures)
    bar.note(figures)
    require_hope(training.name, [past["val_top1_percent"] for past in training.rows], context.floors)


def _require_finite_weights(training: Training) -> None:
    """A finite loss can have a gradient that is not: such weights must not take the place of the last good ones."""
    for parameter in training.network.parameters():
        _require_finite("a weight", parameter.detach().abs().max().item(), training.step, training)


def _require_finite(what: str, value: float, step: int, training: Training) -> None:
    """Raises UserError, which names stage, epoch and step (the first is 1), for a NaN or an infinity."""
    if not math.isfinite(value):
        epoch = math.ceil(step / training.steps_an_epoch)
        raise UserError(
            f"{what} of {value} at step {step} of {training.steps} (epoch {epoch}) of {training.name}, "
            f"where the learning rate is {training.lr(step - 1):.3g}",
            "a finite one",
            f"lower {training.name}.lr",
        )


def _optimizer(
    network: nn.Module, lr: float, config: TrainConfig, lr_shares: dict[str, float]
) -> torch.optim.Optimizer:
    """Weight decay on matrices and filters only (He et al. 2019, "Bag of tricks", section 3.1)."""
    trained = [(lr_shares.get(name, 1.0), value) for name, value in network.named_parameters() if value.requires_grad]
    groups = [
        {"params": params, "weight_decay": decay, "lr": share * lr}
        for share in sorted({share for share, _ in trained} or {1.0}, reverse=True)  # the first is the rate shown
        for decay, params in (
            (config.weight_decay, [value for own, value in trained if own == share and value.ndim > 1]),
            (0.0, [value for own, value in trained if own == share and value.ndim <= 1]),
        )
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr)
    return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.momentum > 0)


def _lr_factor(step: int, steps: int, warmup: float) -> float:
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
