"""The one training loop: a stage brings its network and its loss, and gets back the best epoch's weights."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from compress.config import TrainConfig
from compress.console import progress
from compress.curves import Curves
from compress.data.splits import Data, Split

log = logging.getLogger(__name__)

# (network, images (N, C, H, W), labels (N,)) -> (loss, logits (N, K))
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Schedule:
    """How long and how fast one stage trains."""

    epochs: int
    lr: float


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def train(
    network: nn.Module,
    loss: Loss,
    data: Data,
    schedule: Schedule,
    config: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    curves: Curves,
    name: str,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[dict[str, float]]:
    """Trains `network` in place on `device`, keeps the epoch with the best validation accuracy, returns a row an epoch.

    The learning rate rises linearly over `config.warmup` of the steps and falls to 0 along a cosine. `on_epoch` runs
    before each epoch. Raises DivergedError, which names the step, where the loss is not finite.
    """
    network.to(device, memory_format=torch.channels_last)
    if schedule.epochs == 0:
        return []
    steps = schedule.epochs * data.train.steps()
    optimizer = _optimizer(network, schedule.lr, config)
    factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps, config.warmup))
    generator = torch.Generator().manual_seed(seed)
    rows, best, step = [], None, 0
    with progress(name, steps) as bar:
        for epoch in range(1, schedule.epochs + 1):
            on_epoch(epoch)
            network.train()
            seen, total, correct = 0, 0.0, 0
            for images, labels in data.train.shuffled(generator, data.augmentation):
                images, labels = to_device(images, device), labels.to(device)
                value, logits = loss(network, images, labels)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                current = value.item()
                if not math.isfinite(current):
                    raise DivergedError(f"{name}: the loss is {current} at step {step} of {steps}; a lower lr may help")
                optimizer.step()
                curves.step(step, loss=current, learning_rate=optimizer.param_groups[0]["lr"])
                factor.step()
                seen, total = seen + len(labels), total + current * len(labels)
                correct += int((logits.detach().argmax(1) == labels).sum())
                step += 1
                bar.advance()
            val_loss, val_top1 = _validate(network, data.val, device)
            row = {
                "train_loss": total / seen,
                "train_top1_percent": 100 * correct / seen,
                "val_loss": val_loss,
                "val_top1_percent": val_top1,
            }
            curves.epoch(epoch, **row)
            rows.append(row)
            bar.note(f"epoch {epoch}: loss {row['train_loss']:.3f}, val {val_top1:.2f} %")
            log.info(
                "%s: epoch %d of %d, loss %.3f, train %.2f %%, val %.2f %%",
                name, epoch, schedule.epochs, row["train_loss"], row["train_top1_percent"], val_top1,
            )  # fmt: skip
            if best is None or (val_top1, -val_loss) > best[0]:
                best = ((val_top1, -val_loss), epoch, copy.deepcopy(network.state_dict()))
    network.load_state_dict(best[2])
    log.info("%s: kept epoch %d, the best on validation", name, best[1])
    network.eval()
    return rows


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images (N, C, H, W) in channels_last: convolutions on the CPU run about twice as fast so."""
    return images.to(device, memory_format=torch.channels_last)


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


def _validate(network: nn.Module, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and top-1 in percent."""
    network.eval()
    total, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in split.batches():
            logits, labels = network(to_device(images, device)), labels.to(device)
            total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    return total / len(split), 100 * correct / len(split)
