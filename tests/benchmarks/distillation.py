"""Distills students by each loss for the same epochs, and compares them on the same images.

    python tests/benchmarks/distillation.py --pairs resnet56-resnet20 wrn_40_2-wrn_16_2 --epochs 30
    python tests/benchmarks/distillation.py --pairs vgg16_bn-mobilenet_v2 --epochs 10 --seeds 0
    python tests/benchmarks/distillation.py --table

Students start from new weights, the same ones for each loss and seed. Top-1 is of the float file in ONNX Runtime.
Teachers without a checkpoint are trained first, once for all losses of a seed. Finished rows are kept in `--out` and
are not made again at the same commit, so that a run that was stopped goes on. `--table` prints what is there.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.config.compose import compose_recipe
from compress.config.schema import Config
from compress.methods.distillation.logit_losses import LOGIT_LOSSES
from compress.models.artifact import read_tensors
from compress.pipeline.experiment import run_experiment
from compress.utils.files import PREDICTIONS
from tests.benchmarks.distillation_tables import tables
from tests.benchmarks.headlines import ROOT, commit
from tests.benchmarks.rows import Row, add_options, figures, key_of, make_and_print

OUT = ROOT / "outputs" / "benchmarks" / "distillation.json"
LABELS = "labels"
PUBLISHED_ALPHA = {"dkd": 0.5, "dist": 0.5}  # the others: 0.9
WAYS = (LABELS, *LOGIT_LOSSES, "kd+at", "kd+rkd", "kd+fitnet", "kd+review")


@dataclass(frozen=True)
class Pair:
    """A teacher and a student: the recipe whose images they get, and what is set besides; {datasets} is a folder."""

    recipe: str
    words: tuple[str, ...]


_CIFAR = ("data.root={datasets}/cifar10/cifar10_lossless_subset.npz",)
PAIRS = {
    "resnet56-resnet20": Pair(
        "resnet56_cifar_int8",
        (*_CIFAR, "teacher.checkpoint={datasets}/checkpoints/resnet56-4bfd9763.th", "distill.student=resnet20"),
    ),
    "wrn_40_2-wrn_16_2": Pair(
        "resnet56_cifar_int8",
        (*_CIFAR, "teacher.model=wrn_40_2", "teacher.epochs=60", "teacher.lr=0.05", "distill.student=wrn_16_2"),
    ),
    "vgg16_bn-mobilenet_v2": Pair(
        "fashion_mobilenet_int8", ("data.root={datasets}", "teacher.model=vgg16_bn", "distill.student=mobilenet_v2")
    ),
}


@dataclass(frozen=True)
class Job:
    """A student to train: `way` is `labels`, or names of losses joined by +."""

    pair: str
    way: str
    seed: int
    epochs: int
    lr: float  # its peak
    commit: str


def main() -> int:
    """Runs the command line; returns the exit status."""
    options = parse(sys.argv[1:])
    make_and_print(jobs(options), make, tables, options)
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=[], help="teachers and students")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="losses: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30, help="of the student")
    parser.add_argument("--lr", type=float, default=0.1, help="its peak")
    add_options(parser, OUT)
    options = parser.parse_args(words)
    options.out = options.out.resolve()
    return options


def jobs(options: argparse.Namespace) -> list[Job]:
    """Returns the students that the options ask for; all losses of a seed before the next seed."""
    now = commit()
    return [
        Job(pair, way, seed, options.epochs, options.lr, now)
        for pair in options.pairs
        for seed in options.seeds
        for way in options.ways
    ]


def config_of(job: Job, options: argparse.Namespace) -> Config:
    """Returns the recipe with the job's settings; each logit loss has its published temperature and weight."""
    pair = PAIRS[job.pair]
    words = [word.format(datasets=options.datasets) for word in pair.words]
    words += [
        "stages=[teacher,distill]",
        "distill.hint_layers=[]",
        f"distill.epochs={job.epochs}",
        f"distill.lr={job.lr}",
        f"cache.dir={options.out.with_suffix('') / 'cache'}",
        f"threads={options.threads}",
        f"seed={job.seed}",
    ]
    if job.way == LABELS:
        return compose_recipe(pair.recipe, [*words, "distill.alpha=0"])
    names = job.way.split("+")
    words += [f"distill.losses=[{','.join(names)}]", f"distill.temperature={LOGIT_LOSSES[names[0]].temperature}"]
    return compose_recipe(pair.recipe, [*words, f"distill.alpha={PUBLISHED_ALPHA.get(names[0], 0.9)}"])


def make(job: Job, options: argparse.Namespace) -> Row:
    """Returns the figures of a student's float file; runs are kept, and resume."""
    folder = options.out.with_suffix("") / key_of(job).replace(" ", "_")
    run_experiment(config_of(job, options), folder)
    teacher, student = (read_tensors(next(folder.glob(f"*_{stage}")) / PREDICTIONS) for stage in ("teacher", "distill"))
    return figures(*(found["deployed_top1"] == found["labels"] for found in (student, teacher)))


if __name__ == "__main__":
    sys.exit(main())
