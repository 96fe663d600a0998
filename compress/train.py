"""The one training loop: a stage brings its network and its loss, and the best epoch's weights stay in the network."""

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import nn

from compress.config import TrainConfig
from compress.console import Bar, progress
from compress.context import Context
from compress.data.splits import Split
from compress.errors import UserError

log = logging.getLogger(__name__)

# (network, images (N, C, H, W), labels (N,)) -> (loss, logits (N, K))
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def train(
    network: nn.Module,
    loss: Loss,
    context: Context,
    name: str,
    epochs: int,
    lr: float,
    before_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[dict[str, float]]:
    """Trains `network` in place, keeps the epoch with the best validation accuracy, returns a row an epoch.

    The learning rate rises to `lr` over `train.warmup` of the steps and falls to 0 along a cosine. The network ends in
    eval mode. Raises UserError, which names the step, where the loss is not finite.
    """
    network.to(context.device, memory_format=torch.channels_last)
    steps = epochs * context.data.train.steps()
    optimizer = _optimizer(network, lr, context.train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps, context.train.warmup))
    generator = torch.Generator().manual_seed(context.seed)
    rows, best = [], None
    with progress(name, steps) as bar:
        for epoch in range(1, epochs + 1):
            before_epoch(epoch)
            train_loss, train_top1 = _epoch(network, loss, context, name, optimizer, schedule, generator, bar)
            val_loss, val_top1 = validate(network, context.data.val, context.device)
            row = {
                "train_loss": train_loss,
                "train_top1_percent": train_top1,
                "val_loss": val_loss,
                "val_top1_percent": val_top1,
            }
            rows.append(row)
            context.curves.epoch(epoch, **row)
            figures = f"loss {train_loss:.3f}, train {train_top1:.2f} %, val {val_top1:.2f} %"
            log.info("%s: epoch %d of %d, %s", name, epoch, epochs, figures)
            bar.note(figures)
            if best is None or (val_top1, -val_loss) > best[0]:
                best = ((val_top1, -val_loss), epoch, copy.deepcopy(network.state_dict()))
    if best is not None:
        network.load_state_dict(best[2])
        log.info("%s: kept epoch %d, the best on validation", name, best[1])
    network.eval()
    return rows


def validate(network: nn.Module, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy, and top-1 in percent."""
    network.eval()
    total, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in split.batches():
            logits, labels = network(to_device(images, device)), labels.to(device)
            total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    return total / len(split), 100 * correct / len(split)


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images (N, C, H, W) in channels_last: convolutions on the CPU run about twice as fast so."""
    return images.to(device, memory_format=torch.channels_last)


def _epoch(
    network: nn.Module,
    loss: Loss,
    context: Context,
    name: str,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    generator: torch.Generator,
    bar: Bar,
) -> tuple[float, float]:
    """One pass over the training images; mean loss, and top-1 in percent."""
    network.train()
    seen, total, correct = 0, 0.0, 0
    for images, labels in context.data.train.shuffled(generator, context.data.augmentation):
        images, labels = to_device(images, context.device), labels.to(context.device)
        value, logits = loss(network, images, labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        step, current = schedule.last_epoch, value.item()
        if not math.isfinite(current):
            raise UserError(f"a loss of {current} at step {step} of {name}", "a finite one", f"lower {name}.lr")
        optimizer.step()
        context.curves.step(step, loss=current, learning_rate=optimizer.param_groups[0]["lr"])
        schedule.step()
        seen, total = seen + len(labels), total + current * len(labels)
        correct += int((logits.detach().argmax(1) == labels).sum())
        bar.advance()
    return total / seen, 100 * correct / seen


def _optimizer(network: nn.Module, lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices and filters only (He et al. 2019, "Bag of tricks", section 3.1)."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr)
    return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.momentum > 0)


def _lr_factor(step: int, steps: int, warmup: float) -> float:
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
