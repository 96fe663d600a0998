"""Small trainings that one process and two can do, and a whole run: what training/test_distributed.py starts.

Each process writes what became of its trainings to a folder of its own; then they run the command line together.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress import __main__
from compress.config.schema import TrainConfig
from compress.data import load_data
from compress.data.dataset import Batch, Data
from compress.methods.distillation.losses import label_loss
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.importance import score_channels
from compress.methods.pruning.sparsity import sparsity_penalty
from compress.methods.quantization.pt2e import calibrate, freeze_batch_norm, freeze_observers, prepare
from compress.models import Architecture, build
from compress.training import step
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.distributed import ProcessGroup, StageDone, join
from compress.training.loop import TrainSettings, train
from compress.training.step import LossFn
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import Interrupted, UserError
from compress.utils.torchrun import rank
from tests.conftest import make_tiny_config

CPU = torch.device("cpu")
BATCH = 31  # odd: the parts of two processes differ in size


def small_data(npz: Path) -> Data:
    """Three batches an epoch, and flips and crops in them."""
    config = make_tiny_config(npz).data
    config.batch_size, config.flip = BATCH, True
    return load_data(config, 0)


def plain(data: Data) -> nn.Module:
    """No batch norm and no dropout: the parts of a batch have nothing to do with each other."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.Flatten(), nn.Linear(32, 3))


def normalised(data: Data) -> nn.Module:
    """Batch norm behind each convolution."""
    return build(Architecture("resnet8", "small", 1, 3))


def rounded(data: Data) -> nn.Module:
    """The same, prepared for training with the rounding in the loop."""
    images = [images for images, _ in data.train.batches()]
    prepared = prepare(normalised(data), images[0][:1], 7, qat=True)
    calibrate(prepared, images)
    return prepared


def freezing(prepared: nn.Module) -> Callable[[int], None]:
    """Batch norm behind the first epoch, the ranges behind the second."""

    def freeze(epoch: int) -> None:
        if epoch > 1:
            freeze_batch_norm(prepared)
        if epoch > 2:
            freeze_observers(prepared)

    return freeze


NETWORKS = {"plain": plain, "normalised": normalised, "rounded": rounded}


def training(
    name: str,
    data: Data,
    ranks: ProcessGroup,
    loss: LossFn | None = None,
    checkpoint: Checkpoint | None = None,
    epochs: int = 1,
) -> tuple[dict[str, Tensor], Context]:
    """The network's state at the end of the last epoch, and the context with its notes."""
    torch.manual_seed(0)
    network = NETWORKS[name](data)
    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(precision="float32"), CPU, 5, curves, checkpoint, ranks=ranks)
        before = freezing(network) if name == "rounded" else lambda epoch: None
        with suppress(StageDone):
            train(network, loss or label_loss(0.0), context, TrainSettings("test", epochs, 0.05, before))
    return {key: value.contiguous().clone() for key, value in network.state_dict().items()}, context


def pruned_between(
    data: Data,
    ranks: ProcessGroup,
    loss: LossFn | None = None,
    checkpoint: Checkpoint | None = None,
    ema: float = 0.0,
) -> dict[str, Tensor]:
    """The state of a network that learns sparsity in one training, and is pruned and trained again."""
    torch.manual_seed(0)
    network = normalised(data)
    prunable = PrunableNetwork(network, torch.zeros(1, *data.shape))
    penalty = sparsity_penalty(prunable, "growing_reg", 0.05)
    with TensorBoardWriter(None) as curves:
        config = TrainConfig(precision="float32", ema=ema)
        context = Context(data, None, config, CPU, 5, curves, checkpoint, ranks=ranks)
        settings = TrainSettings("test", 2, 0.05, penalty=penalty, part="sparsity", last=False)
        train(network, label_loss(0.0), context, settings)
        left = [group.channels // 2 for group in prunable.groups]
        prunable.remove(prunable.lowest(left, score_channels(prunable, "l2")))
        with suppress(StageDone):
            train(network, loss or label_loss(0.0), context, TrainSettings("test", 1, 0.05, part="fine-tuning"))
    return {key: value.contiguous().clone() for key, value in network.state_dict().items()}


def small_memory(images: int, seen: list[int]) -> LossFn:
    """The loss of labels, in a process whose memory takes so many images; `seen` gets how many it was given."""

    def loss(network: nn.Module, examples: Batch) -> tuple[Tensor, Tensor]:
        seen.append(len(examples.images))
        value, logits = label_loss(0.0)(network, examples)
        if len(examples.images) > images:
            raise torch.OutOfMemoryError("a test's memory is full")
        return value, logits

    return loss


def reordered(network: nn.Module, examples: Batch) -> tuple[Tensor, Tensor]:
    """The loss of labels, its sums over a batch in another order."""
    order = torch.randperm(len(examples.labels), generator=torch.Generator().manual_seed(0))
    value, logits = label_loss(0.0)(network, Batch(*(rows[order] for rows in examples)))
    return value, logits[order.argsort()]


def signalled(at: int) -> LossFn:
    """The loss of labels, in whose step `at` the process is terminated."""
    calls = []

    def loss(network: nn.Module, examples: Batch) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return label_loss(0.0)(network, examples)

    return loss


def trainings(data: Data, folder: Path, shared: Path) -> None:
    """All that two processes do together but a run, into `folder`; `shared` is where checkpoints go."""
    ranks = join(CPU)
    states = {name: training(name, data, ranks)[0] for name in NETWORKS}
    states["rounded_frozen"] = training("rounded", data, ranks, epochs=3)[0]
    seen: list[int] = []
    states["small_memory"], context = training(
        "plain", data, ranks, small_memory(4 if ranks.is_rank_zero else BATCH, seen)
    )
    told: dict[str, object] = {"notes": context.notes, "seen": seen}

    checkpoint = Checkpoint(shared / "state", "key", 10)
    try:  # the probe of memory is the first call, so that the second step is the third
        training("normalised", data, ranks, None if ranks.is_rank_zero else signalled(3), checkpoint)
    except Interrupted as stop:
        told["stopped"] = str(stop)
    states["stopped"], _ = training("normalised", data, ranks, None, checkpoint)
    states["pruned_between"] = pruned_between(data, ranks)
    states["averaged_between"] = pruned_between(data, ranks, ema=0.5)
    for name, ema in (("pruned_between", 0.0), ("averaged_between", 0.5)):
        checkpoint = Checkpoint(shared / f"state_of_{name}", "key", 10)
        try:
            pruned_between(data, ranks, None if ranks.is_rank_zero else signalled(3), checkpoint, ema)
        except Interrupted as stop:
            told[f"{name}_stopped"] = str(stop)
        states[f"{name}_stopped"] = pruned_between(data, ranks, None, checkpoint, ema)

    folder.mkdir()
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    (folder / "told.json").write_text(json.dumps(told))


def die_in_step(at: int) -> None:
    """The process that does not lead ends in its step `at`, by a mistake that it alone sees."""
    gradients = step.Step.gradients

    def dying(self: step.Step, examples: Batch, count: int) -> tuple[float, int]:
        if rank() == 1 and self._training.step == at:
            raise UserError("an image that only process 1 reads", "one that can be decoded", "repair it")
        return gradients(self, examples, count)

    step.Step.gradients = dying


if __name__ == "__main__":
    task, npz, place, *sys.argv[1:] = sys.argv[1:]
    torch.set_num_threads(1)
    if task == "die":
        die_in_step(2)
    else:
        trainings(small_data(Path(npz)), Path(place) / f"rank_{rank()}", Path(place))
    sys.exit(__main__.main())
