"""The one training loop: a stage brings its network and its loss, and the weights of the epoch to keep stay in it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from signal import Signals

import torch
from torch import Tensor, nn

from compress.config.schema import TrainConfig
from compress.training.context import Context
from compress.training.distributed import StageDone
from compress.training.early_stopping import check_early_stopping
from compress.training.fast_layers import optimized_layers
from compress.training.finished import finish, unpack
from compress.training.finite import require_finite
from compress.training.lr_schedules import lr_factor
from compress.training.malloc import keep_freed_memory
from compress.training.penalty import GradientPenalty
from compress.training.state import TrainState
from compress.training.state_saver import StateSaver
from compress.training.step import LossFn, Step, agree_on_micro_batches, micro_batches_text
from compress.training.validation import split_logits, validate
from compress.training.weight_average import WeightAverage
from compress.utils.console import Bar, progress
from compress.utils.cores import cores
from compress.utils.other_load import OtherLoad
from compress.utils.signals import deferred_signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one training that the stages do not share."""

    name: str  # the stage's
    epochs: int
    lr: float  # the peak
    # Called before each epoch with its number, from 1; after a restart it is called for the epoch under way only.
    before_epoch: Callable[[int], None] = lambda epoch: None
    lr_scales: dict[str, float] = field(default_factory=dict)  # a parameter's share of `lr`; the largest is 1
    teacher: nn.Module | None = None  # an epoch is judged by the distance to it; None: by the labels
    penalty: GradientPenalty | None = None  # its gradient is added to that of the loss
    part: str = ""  # what this training is called in a stage with several
    last: bool = True  # of the stage; after another one, every process goes on with the stage
    schedule: str = "cosine"  # how the learning rate falls


def train(network: nn.Module, loss: LossFn, context: Context, settings: TrainSettings) -> list[dict[str, float]]:
    """Trains `network` in place and returns a row an epoch; it ends in eval mode.

    The learning rate rises to `settings.lr` over `train.warmup` of the steps and then follows `settings.schedule`. The
    last epoch is kept, unless an earlier one is better on validation beyond chance. With `train.ema` the weights that
    are validated and kept are the averaged ones. A training that `context.checkpoint` holds continues after its last
    step. Each of `context.ranks` takes its part of every batch; all end with the same weights. A stage may train
    several times, one after the other, and the network may change its shape in between: a stage that starts anew calls
    the same trainings, and those that `context.checkpoint` holds as finished return at once. Raises StageDone after the
    stage's last training in every process but the first, UserError, which names the step, where a loss or a weight is
    not finite, EarlyStopped below `context.min_val_metric`, and Interrupted once a signal has come and the state is
    saved.
    """
    network.to(context.device, memory_format=torch.channels_last)
    training = _begin(network, context, settings)
    if training.epoch <= settings.epochs:
        _take_epochs(training, loss, context, settings)
    if settings.last and not context.ranks.is_rank_zero:
        raise StageDone
    if training.micro_batches > 1:
        context.notes["out_of_memory"] = micro_batches_text(training.micro_batches)
    if settings.epochs:
        kept = training.choose_epoch()
        context.notes["kept_epoch"] = kept | ({"training": settings.part} if settings.part else {})
        log.info("%s: kept epoch %d, %s", training.name, kept["epoch"], kept["reason"])
    if not settings.last:
        context.finished.append(finish(training))
    network.eval()
    return training.rows


def _take_epochs(training: TrainState, loss: LossFn, context: Context, settings: TrainSettings) -> None:
    """Takes the remaining steps of all epochs. Raises what `train` does."""
    network, ranks, checkpoint = training.network, context.ranks, context.checkpoint
    teacher = settings.teacher
    teacher_logits = None if teacher is None else split_logits(teacher, context.data.val, context.device)
    requests: AbstractContextManager[list[Signals]] = deferred_signals() if checkpoint else nullcontext([])
    if ranks.world > 1:
        agree_on_micro_batches(training, loss, context)
    with (
        progress(training.name, training.steps, training.step) as bar,
        requests as signals,
        keep_freed_memory(),
        optimized_layers(network),
        ranks.wrap_ddp(network) as ddp_network,
    ):
        saver = StateSaver(training, checkpoint, ranks, signals, context.finished)
        load = OtherLoad()
        while training.epoch <= training.epochs:
            network.train()
            settings.before_epoch(training.epoch)
            if training.penalty:
                training.penalty.start_epoch(training.epoch)
            _finish_steps(training, ddp_network, loss, context, saver, bar)
            with training.averaged_weights():
                _finish_epoch(training, teacher_logits, context, saver, bar)
            if training.epoch == 2 and ranks.is_rank_zero:
                _warn_of_other_load(load.cores())
            ended = training.epoch > training.epochs
            saver.save_if_due(now=ended and not settings.last)  # what the stage does next may take long


def _begin(network: nn.Module, context: Context, settings: TrainSettings) -> TrainState:
    """Returns a training before its first step, or as it was saved, and writes its curves up to there."""
    steps_per_epoch = context.data.train.steps()
    optimizer = _optimizer(network, settings.lr, context.train, settings.lr_scales)
    factor = lambda step: lr_factor(step, settings.epochs * steps_per_epoch, context.train.warmup, settings.schedule)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    number = len(context.finished)
    generator = torch.Generator().manual_seed(context.seed + number)  # else all trainings would draw the same orders
    training = TrainState(
        settings.name,
        settings.epochs,
        steps_per_epoch,
        network,
        optimizer,
        schedule,
        generator,
        settings.part,
        settings.penalty,
        WeightAverage(network, context.train.ema) if context.train.ema else None,
    )
    stage = context.ranks.rank_zero_first(context.checkpoint.load) if context.checkpoint else None
    saved = unpack(stage, number) if stage else None
    if saved:
        training.restore(*saved)
        for step, value in enumerate(training.losses):
            _write_step(training, step, value, context)
        for epoch, row in enumerate(training.rows, 1):
            _write_epoch(epoch, row, context)
        log.info("%s: goes on after step %d of %d", training.name, training.step, training.steps)
    return training


def _write_step(training: TrainState, step: int, loss: float, context: Context) -> None:
    """Writes a step to the stage's curves, which go on from one of its trainings to the next."""
    before = sum(each.steps for each in context.finished)
    context.curves.step(before + step, loss=loss, learning_rate=training.lr(step))


def _write_epoch(epoch: int, row: dict[str, float], context: Context) -> None:
    before = sum(len(each.rows) for each in context.finished)
    context.curves.epoch(before + epoch, **row)


def _finish_steps(
    training: TrainState, ddp_network: nn.Module, loss: LossFn, context: Context, saver: StateSaver, bar: Bar
) -> None:
    """Takes the remaining steps of the epoch under way: all of them, some, or none."""
    generator, split, ranks = training.generator, context.data.train, context.ranks
    step = Step(training, ddp_network, loss, context)
    if training.order is None:
        training.order = split.shuffle(generator)
    augmented = split.augmented(
        training.order, generator, context.data.augmentation, training.batches, ranks.shard, context.device
    )
    for batch, count in augmented:
        batch = batch._replace(labels=batch.labels.to(context.device))
        value, correct = ranks.all_reduce_sum(*step.gradients(batch, count))
        require_finite("a loss", value, training.step + 1, training)
        if training.penalty:
            training.penalty.add_gradients()
        training.optimizer.step()
        if training.average:
            training.average.update(training.step)
        _write_step(training, training.step, value, context)
        training.schedule.step()
        training.finish_batch(value, correct, count)
        bar.advance()
        saver.save_if_due()


def _finish_epoch(
    training: TrainState, teacher_logits: Tensor | None, context: Context, saver: StateSaver, bar: Bar
) -> None:
    """Validates, then records and logs the epoch's figures. Raises UserError and EarlyStopped as `train` does."""
    found = validate(
        training.network,
        context.data.val,
        context.device,
        teacher_logits,
        saver.save_if_due,
        context.ranks,
        training.micro_batches,
        context.task,
    )
    metric = context.task.metric
    train, val = f"train_{metric.train_key}_percent", f"val_{metric.key}_percent"
    require_finite("a validation loss", found.loss, training.step, training)
    row = {
        "train_loss": training.total_loss / training.seen,
        train: 100 * training.correct / training.seen,
        "val_loss": found.loss,
        val: found.score_percent,
    }
    figures = f"loss {row['train_loss']:.3f}, train {row[train]:.2f} %, val {found.score_percent:.2f} %"
    if (distance := found.distance) is not None:
        row["val_teacher_kl_nats"] = distance
        figures += f", {distance:.3g} nats from the teacher"
    training.finish_epoch(row, found)
    _write_epoch(len(training.rows), row, context)
    log.info("%s: epoch %d of %d, %s", training.name, len(training.rows), training.epochs, figures)
    bar.note(figures)
    rows = [past for each in context.finished for past in each.rows] + training.rows
    check_early_stopping(training.stage, [past[val] for past in rows], context.min_val_metric)


def _warn_of_other_load(others: float) -> None:
    """Warns where fewer threads would train faster: a thread whose core another program uses delays all others."""
    threads, free = torch.get_num_threads(), max(1, round(cores() - others))
    if threads > free:
        log.warning(
            "other programs keep %.1f of %d cores busy, and %d threads that wait for each other lose more than these; "
            "threads=%d would be faster beside them, with other digits",
            others,
            cores(),
            threads,
            free,
        )


def _optimizer(
    network: nn.Module, lr: float, config: TrainConfig, lr_scales: dict[str, float]
) -> torch.optim.Optimizer:
    """Decays the weights of matrices and filters only (He et al. 2019, "Bag of tricks", section 3.1)."""
    trained = [(lr_scales.get(name, 1.0), value) for name, value in network.named_parameters() if value.requires_grad]
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
