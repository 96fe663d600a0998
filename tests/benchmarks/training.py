"""Images a second of training, against the loop that most people would write: `python tests/benchmarks/training.py`.

Each contender is a process of its own and takes turns with the others; a turn is an epoch with its validation, and a
ratio is one of medians over the same rounds. MobileNetV2 on CIFAR-10's 32-pixel images unless told otherwise.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from compress.config.data_settings import DataConfig
from compress.config.schema import TrainConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.evaluation.environment import environment
from compress.methods.distillation.losses import label_loss, teacher_loss
from compress.methods.distillation.teacher_logits import compute_logits
from compress.models import Architecture, build
from compress.models.graph.fold_batch_norm import fold_batch_norm
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.fast_layers import optimized_layers
from compress.training.loop import TrainSettings, train
from compress.training.malloc import keep_freed_memory
from compress.training.precision import choose_precision, layers_in
from compress.training.tensorboard import TensorBoardWriter
from compress.training.validation import validate
from compress.utils.tensors import to_device
from tests.benchmarks.racing import PROJECT, ratio_of_medians

PLAIN, PLAIN_WORKERS, BARE, OURS = "plain loop", "plain loop, 2 workers", "bare loop, our measures", "ours"
CONTENDERS = (PLAIN, PLAIN_WORKERS, BARE, OURS)
LEARNING_RATE, TEMPERATURE, ALPHA = 0.05, 2.0, 0.9
PADDING = 4

Epoch = Callable[[], float]  # trains an epoch, returns validation top-1 in percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=PROJECT.parent / "shared/datasets/cifar10/cifar10_lossless_subset.npz"
    )
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=2560, help="train images of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--distill", action="store_true", help="learn from a teacher of the same shape")
    parser.add_argument("--accuracy", type=int, default=0, metavar="EPOCHS", help="train to the end instead of timing")
    parser.add_argument("--seeds", type=int, default=3, help="of --accuracy")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of our loop (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="all")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        serve(options)
    elif options.accuracy:
        compare_accuracy(options)
    else:
        race(options)


def race(options: argparse.Namespace) -> None:
    """Prints the table of images a second."""
    print(environment(torch.get_num_threads()))
    processes = {name: start(name, options) for name in options.only}
    times: dict[str, list[float]] = {name: [] for name in options.only}
    for turn in range(-1, options.rounds):  # the first one warms up
        for name, process in processes.items():
            answer = ask(process)
            if turn >= 0:
                times[name].append(answer["seconds"])
    for process in processes.values():
        process.stdin.close()
        process.wait()
    plains = [name for name in (PLAIN, PLAIN_WORKERS) if name in times] or options.only[:1]
    base = min(plains, key=lambda name: statistics.median(times[name]))
    title = f"{options.model}, distilled" if options.distill else options.model
    print(f"\n| {title} | images/s | times as fast as the {base} (95 %) |\n|---|---:|---:|")
    for name, seconds in times.items():
        ratio, (low, high) = ratio_of_medians(times[base], seconds)
        print(f"| {name} | {options.images / statistics.median(seconds):.0f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")
    if {BARE, OURS} <= set(times):
        cost, ends = ratio_of_medians(times[OURS], times[BARE])
        percent, low, high = (100 * (ratio - 1) for ratio in (cost, *ends))
        print(f"\nthe framework's own cost: {percent:+.1f} % ({low:+.1f} to {high:+.1f})")


def compare_accuracy(options: argparse.Namespace) -> None:
    """Prints validation top-1 after the same epochs, a row a loop."""
    print(f"| validation top-1 % after {options.accuracy} epochs | mean | each seed |\n|---|---:|---|")
    for name in options.only:
        found = []
        for seed in range(options.seeds):
            options.seed = seed
            process = start(name, options)
            answers = [ask(process) for _ in range(1 if name == OURS else options.accuracy)]
            process.stdin.close()
            process.wait()
            found.append(max(answer["top1"] for answer in answers))
        print(f"| {name} | {statistics.mean(found):.2f} | {', '.join(f'{top1:.2f}' for top1 in found)} |", flush=True)


def start(name: str, options: argparse.Namespace) -> subprocess.Popen:
    """The process of a contender, ready and waiting."""
    kept = ("data", "model", "batch_size", "images", "accuracy", "seed", "precision")
    arguments = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in kept]
    command = [sys.executable, "-m", "tests.benchmarks.training", f"--contender={name}", *arguments]
    command += ["--distill"] * options.distill
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
    process = subprocess.Popen(command, **pipes)
    process.stdout.readline()
    return process


def ask(process: subprocess.Popen) -> dict[str, float]:
    """One turn. Raises RuntimeError where the process ended."""
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a contender ended with {process.wait()}")
    return json.loads(line)


def serve(options: argparse.Namespace) -> None:
    """Answers each line with an epoch's seconds and top-1."""
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        epoch = contender(options, Path(folder))
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            top1 = epoch()
            print(json.dumps({"seconds": time.perf_counter() - began, "top1": top1}), file=answers, flush=True)


def contender(options: argparse.Namespace, folder: Path) -> Epoch:
    """The loop of that name on the same images, from the same weights."""
    config = DataConfig(
        name="npz", root=str(options.data), batch_size=options.batch_size, crop_padding=PADDING, flip=True
    )
    data = load_data(config, seed=0)
    if not options.accuracy:
        data.train.index = data.train.index[: options.images]
        data.val.index = data.val.index[: options.images // 5]
    torch.manual_seed(options.seed)
    network = build(Architecture(options.model, "small", data.shape[0], len(data.classes)))
    teacher = copy.deepcopy(network).eval() if options.distill else None
    if options.contender in (PLAIN, PLAIN_WORKERS):
        return plain(network, teacher, data, options)
    torch.set_flush_denormal(True)
    return (bare if options.contender == BARE else ours)(network, teacher, data, options, folder)


def plain(network: nn.Module, teacher: nn.Module | None, data: Data, options: argparse.Namespace) -> Epoch:
    """As torchvision's references: a DataLoader of PIL images and their transforms, the default memory format."""
    normalise = transforms.Normalize(data.mean, data.std)
    to_tensor = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float), normalise]
    augment = [transforms.RandomCrop(data.shape[1], PADDING), transforms.RandomHorizontalFlip()]
    workers = 2 if options.contender == PLAIN_WORKERS else 0
    loaders = [
        torch.utils.data.DataLoader(
            Pictures(split, transforms.Compose(steps)), options.batch_size, shuffle=shuffled, num_workers=workers
        )
        for split, steps, shuffled in ((data.train, augment + to_tensor, True), (data.val, to_tensor, False))
    ]
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, 0.9, weight_decay=5e-4, nesterov=True)
    steps = max(1, options.accuracy) * len(loaders[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps + 1, pct_start=0.1)

    def epoch() -> float:
        network.train()
        for images, labels in loaders[0]:
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(images)
                softened = [F.log_softmax(x / TEMPERATURE, 1) for x in (logits, wanted)]
                divergence = F.kl_div(*softened, reduction="batchmean", log_target=True)
                loss = ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if options.accuracy:
                schedule.step()
            loss.item()
        network.eval()
        with torch.no_grad():
            right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in loaders[1])
        return 100 * right / len(data.val)

    return epoch


class Pictures(torch.utils.data.Dataset):
    """A split as PIL images, decoded beforehand."""

    def __init__(self, split, transform: Callable):
        pixels = split.pixels.images[split.index].permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(image.squeeze()) for image in np.ascontiguousarray(pixels)]
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[at]), self.labels[at]


def our_loss(teacher: nn.Module | None) -> Callable:
    if teacher is None:
        return label_loss(0.0)
    return teacher_loss(
        compute_logits(fold_batch_norm(teacher.to(memory_format=torch.channels_last))), TEMPERATURE, ALPHA
    )


def bare(network: nn.Module, teacher: nn.Module | None, data: Data, options: argparse.Namespace, folder: Path) -> Epoch:
    """Our steps with nothing around them: no checkpoint, curve, log, progress or check."""
    network.to(memory_format=torch.channels_last)
    loss, generator = our_loss(teacher), torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, 0.9, weight_decay=5e-4, nesterov=True)
    precision = choose_precision(options.precision, torch.device("cpu"))

    def epoch() -> float:
        with keep_freed_memory(), optimized_layers(network):
            network.train()
            order = data.train.shuffle(generator)
            for examples, _ in data.train.augmented(order, generator, data.augmentation):
                examples = examples._replace(images=to_device(examples.images, torch.device("cpu")))
                with layers_in(precision, torch.device("cpu")):
                    value, _ = loss(network, examples)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                value.item()
            return validate(network, data.val, torch.device("cpu")).score_percent

    return epoch


def ours(network: nn.Module, teacher: nn.Module | None, data: Data, options: argparse.Namespace, folder: Path) -> Epoch:
    """The training loop of the stages, with its checkpoint and its curves."""
    config, epochs, turns = TrainConfig(precision=options.precision), max(1, options.accuracy), iter(range(10**6))

    def epoch() -> float:
        turn = next(turns)
        place = Checkpoint(folder / f"{turn}.training.safetensors", str(turn), config.checkpoint_minutes)
        with TensorBoardWriter(folder / f"curves_{turn}") as curves:
            context = Context(data, None, config, torch.device("cpu"), options.seed, curves, place)
            rows = train(network, our_loss(teacher), context, TrainSettings("teacher", epochs, LEARNING_RATE))
        return max(row["val_top1_percent"] for row in rows)

    return epoch


if __name__ == "__main__":
    main()
