"""Prunes a CIFAR ResNet-56 to shares of its MACs in every way there is, and compares them on the same images.

    python tests/benchmarks/pruning.py --refit [--best NAME]
    python tests/benchmarks/pruning.py --train 10 --ways l1:sensitivity l1:local l1:isomorphic
    python tests/benchmarks/pruning.py --table

`--refit` scores the float network right after the cut: this project's after its refit, torch-pruning's as they are.
`--train` runs the recipe's distillation and quantization on both, and scores the int8 file in ONNX Runtime. Finished
rows are kept in `--out` and are not made again at the same commit, so that a run that was stopped goes on. `--table`
prints what is there as Markdown.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.config.compose import compose_recipe
from compress.config.schema import Config
from compress.config.stage_settings import PruneConfig
from compress.evaluation.flops import count_cost
from compress.models.artifact import Artifact, read_tensors
from compress.pipeline.compute import RunContext, prepare
from compress.pipeline.experiment import run_experiment
from compress.training.validation import split_logits
from compress.utils.file_lock import lock_file
from compress.utils.files import METRICS, PREDICTIONS, read_json
from tests.benchmarks.headlines import ROOT, commit
from tests.benchmarks.pruning_by_hand import (
    PRUNERS,
    file_right,
    prune_by_hand,
    run_stage,
    train_by_hand,
)
from tests.benchmarks.pruning_tables import BASELINE, tables
from tests.benchmarks.rows import Row, add_options, figures, key_of, make_and_print

OUT = ROOT / "outputs" / "benchmarks" / "pruning.json"
RECIPE = "resnet56_cifar_int8"
IMPORTANCES, SCOPES = (
    next(item.metadata["choices"] for item in fields(PruneConfig) if item.name == name)
    for name in ("importance", "scope")
)
INNER, ALL = "inner", "all"  # which layers a pruner of torch-pruning may cut


@dataclass(frozen=True)
class Job:
    """A network to make: `way` is IMPORTANCE:SCOPE, or PRUNER:inner or PRUNER:all of torch-pruning."""

    part: str  # refit, train
    way: str
    share: float  # of the MACs
    seed: int
    epochs: int  # of distillation
    lr: float  # its peak; 0: the recipe's
    batch_size: int  # of training; 0: the recipe's
    train_images: int  # 0: all
    commit: str

    @property
    def is_torch_pruning(self) -> bool:
        """Returns whether a pruner of torch-pruning removes the filters."""
        return self.way.partition(":")[0] in PRUNERS


def main() -> int:
    """Runs the command line; returns the exit status."""
    options = parse(sys.argv[1:])
    make_and_print(jobs(options), make, tables, options)
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refit", action="store_true", help="every importance and scope, without training")
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS", help="--ways through the whole recipe")
    parser.add_argument("--lr", type=float, default=0.0, help="the peak in --train; 0: the recipe's")
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help="of --train; 0: the recipe's")
    parser.add_argument("--ways", nargs="+", default=[], metavar="IMPORTANCE:SCOPE", help="of --refit: all")
    parser.add_argument("--best", choices=IMPORTANCES, help="--refit: the importance that sensitivity is tried with")
    parser.add_argument("--pruners", nargs="*", choices=PRUNERS, default=list(PRUNERS), help="torch-pruning's: all")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.463, 0.3333, 0.25], help="of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--train-images", type=int, default=0, metavar="N", help="a seeded choice of so many; 0: all")
    add_options(parser, OUT)
    options = parser.parse_args(words)
    known = [f"{importance}:{scope}" for importance in IMPORTANCES for scope in SCOPES]
    if unknown := [way for way in options.ways if way not in known]:
        parser.error(f"received --ways {unknown[0]}; expected IMPORTANCE:SCOPE, such as {known[0]}")
    if options.train and not options.ways:
        parser.error("received --train without --ways; expected the ways to train: name them")
    options.out = options.out.resolve()
    return options


def jobs(options: argparse.Namespace) -> list[Job]:
    """Returns the networks that the options ask for, the baseline of a share first."""
    every = [f"{importance}:local" for importance in IMPORTANCES] + [f"l1:{scope}" for scope in SCOPES]
    every += [f"{options.best}:sensitivity"] if options.best else []
    inner, whole = ([f"{pruner}:{layers}" for pruner in options.pruners] for layers in (INNER, ALL))
    parts = {"refit": [BASELINE, *(options.ways or every), *inner, *whole]} if options.refit else {}
    parts |= {"train": [*options.ways, *inner]} if options.train else {}
    training = (options.train, options.lr, options.batch_size)
    images, now = options.train_images, commit()
    return [
        Job(part, way, share, seed, *training if part == "train" else (0, 0.0, 0), images, now)
        for part, ways in parts.items()
        for share in options.shares
        for way in dict.fromkeys(ways)
        for seed in options.seeds
    ]


def make(job: Job, options: argparse.Namespace) -> Row:
    """Returns the figures of a network."""
    return (refit if job.part == "refit" else train)(job, options)


def config_of(job: Job, options: argparse.Namespace) -> Config:
    """Returns the recipe with the job's settings."""
    words = [
        f"teacher.checkpoint={options.datasets}/checkpoints/resnet56-4bfd9763.th",
        f"data.root={images_of(options)}",
        f"cache.dir={folder_of(options) / 'cache'}",
        f"prune.target.macs_share={job.share}",
        f"distill.epochs={job.epochs}",
        f"threads={options.threads}",
        f"seed={job.seed}",
    ]
    words += [f"distill.lr={job.lr}"] if job.lr else []
    words += [f"data.batch_size={job.batch_size}"] if job.batch_size else []
    if not job.is_torch_pruning:
        importance, _, scope = job.way.partition(":")
        words += [f"prune.importance={importance}", f"prune.scope={scope}"]
    return compose_recipe(RECIPE, words)


def folder_of(options: argparse.Namespace) -> Path:
    """Returns the folder beside `options.out` that whole runs, their cache and chosen images go into."""
    return options.out.with_suffix("")


def images_of(options: argparse.Namespace) -> Path:
    """Returns the file of the images; where fewer are asked for, one with the first of a seeded shuffle of train."""
    source = options.datasets / "cifar10" / "cifar10_lossless_subset.npz"
    if not options.train_images:
        return source
    path = folder_of(options) / f"train_{options.train_images}.npz"
    with np.load(source) as arrays, lock_file(path.parent, path.stem):
        if not path.is_file():
            order = np.random.default_rng(0).permutation(len(arrays["train_labels"]))[: options.train_images]
            train = {name: arrays[name][order] for name in ("train_images", "train_labels")}
            np.savez(path, **train, **{name: arrays[name] for name in ("test_images", "test_labels")})
    return path


def refit(job: Job, options: argparse.Namespace) -> Row:
    """Returns the figures of a float network right after its cut, and the seconds that the cut took."""
    run = prepare(config_of(job, options))
    teacher = run_stage("teacher", None, None, run)
    began = time.perf_counter()
    if job.is_torch_pruning:
        network = cut_by_hand(job, teacher, run)
    else:
        network = run_stage("prune", copy.deepcopy(teacher), teacher, run).network
    seconds = round(time.perf_counter() - began, 1)
    test = run.data.test
    right, teacher_right = (
        split_logits(one, test, run.device).argmax(1) == test.labels for one in (network, teacher.network)
    )
    return figures(right, teacher_right) | {"macs_share": macs_share(network, teacher, run), "seconds": seconds}


def train(job: Job, options: argparse.Namespace) -> Row:
    """Returns the figures of the int8 file that ships; this project's own ways are whole runs, which resume."""
    config = config_of(job, options)
    if job.is_torch_pruning:
        run = prepare(config)
        teacher = run_stage("teacher", None, None, run)
        network = cut_by_hand(job, teacher, run)
        share = macs_share(network, teacher, run)
        teacher_right = file_right(copy.deepcopy(teacher.network), run)
        return figures(train_by_hand(network, teacher, run), teacher_right) | {"macs_share": share}
    folder = folder_of(options) / key_of(job).replace(":", "-").replace(" ", "_")
    run_experiment(config, folder)
    stages = [folder / row["stage"] for row in read_json(folder / "summary.json")["stages"]]
    first, last = (read_tensors(stage / PREDICTIONS) for stage in (stages[0], stages[-1]))
    macs = [read_json(stage / METRICS)["macs"] for stage in (stages[-1], stages[0])]
    right, teacher_right = (found["deployed_top1"] == found["labels"] for found in (last, first))
    return figures(right, teacher_right) | {"macs_share": macs[0] / macs[1]}


def cut_by_hand(job: Job, teacher: Artifact, run: RunContext) -> nn.Module:
    """Returns the network that a pruner of torch-pruning makes. Raises CannotPruneError where it fails."""
    name, _, layers = job.way.partition(":")
    example = torch.zeros(1, *run.data.shape, device=run.device)
    return prune_by_hand(teacher.network, name, layers == INNER, job.share, example)


def macs_share(network: nn.Module, teacher: Artifact, run: RunContext) -> float:
    """Returns the MACs of `network` as a share of the teacher's."""
    return count_cost(network.eval(), run.data.shape)[1] / count_cost(teacher.network.eval(), run.data.shape)[1]


if __name__ == "__main__":
    sys.exit(main())
