"""Takes MedMNIST-shaped sets of real scans through the medical recipe: two classes, ten and several labels.

    python tests/benchmarks/medical.py runs
    python tests/benchmarks/medical.py balance [--seeds 0 1 2]

The images are scikit-learn's digits, made rare where a task asks for it, in grey, in colour and with 16 bits.
`balance` compares a teacher without either means against rare classes, with class weights and with the sampler.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.config.compose import compose_recipe
from compress.pipeline.experiment import run_experiment
from compress.utils.files import METRICS, read_json

TASKS = ("two classes", "ten classes", "several labels")
PIXELS = ("grey", "colour", "16 bits")
MEANS = {"none": [], "weights": ["train.class_weights=balanced"], "sampler": ["data.sampler=balanced"]}
MODEL = ["teacher.model=resnet20", "teacher.epochs=20", "data.batch_size=32", "cache.enabled=false", "threads=1"]


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("runs", "balance"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="the folder that runs go to; none: they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        print(runs(folder) if options.what == "runs" else balance(folder, options.seeds))
    return 0


def runs(folder: Path) -> str:
    """Returns a table of the last file of each task and kind of pixels."""
    lines = [
        "| task | pixels | metric | teacher % | int8 % | balanced accuracy % | calibration error %, with temperature "
        "| sensitivity % at 95 % specificity | correlation of heatmaps |",
        "|---|---|---|---:|---:|---:|---|---|---:|",
    ]
    for task, pixels in itertools.product(TASKS, PIXELS):
        run_folder = folder / f"{task} {pixels}".replace(" ", "_")
        stages = run(task, pixels, run_folder, [])
        lines.append(_row(task, pixels, stages[0], stages[-1]))
    return "\n".join(lines)


def _row(task: str, pixels: str, teacher: dict[str, Any], last: dict[str, Any]) -> str:
    key = f"deployed_{last['metric']}_percent"
    points = [point["sensitivity_percent"] for point in last["operating_points"]]
    balanced = last.get("deployed_balanced_accuracy_percent")
    errors = [last[f"deployed_calibration_error_{name}percent"] for name in ("", "at_temperature_")]
    cells = [
        task,
        pixels,
        last["metric"],
        f"{teacher[key]:.2f}",
        f"{last[key]:.2f}",
        "–" if balanced is None else f"{balanced:.2f}",
        ", ".join("–" if error is None else f"{error:.1f}" for error in errors),
        f"{np.mean(points):.1f} (mean of {len(points)})",
        "–" if (alike := last.get("grad_cam_correlation")) is None else f"{alike:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def balance(folder: Path, seeds: list[int]) -> str:
    """Returns a table of the teacher's accuracy on ten classes of which some are rare."""
    lines = [
        "| against rare classes | top-1 % of each seed | balanced accuracy % of each seed, mean |",
        "|---|---|---|",
    ]
    for name, words in MEANS.items():
        found = []
        for seed in seeds:
            settings = ["train.class_weights=none", *words, f"seed={seed}"]
            found += run("ten classes", "grey", folder / f"{name}_{seed}", settings, teacher_only=True)
        top1, balanced = ([row[f"deployed_{key}_percent"] for row in found] for key in ("top1", "balanced_accuracy"))
        texts = [", ".join(f"{value:.2f}" for value in values) for values in (top1, balanced)]
        lines.append(f"| {name} | {texts[0]} | {texts[1]}: {np.mean(balanced):.2f} |")
    return "\n".join(lines)


def run(task: str, pixels: str, folder: Path, words: list[str], teacher_only: bool = False) -> list[dict[str, Any]]:
    """Returns the metrics of each stage of the recipe on a task."""
    folder.mkdir()
    np.savez(folder / "set.npz", **arrays(task, pixels))
    settings = [f"data.root={folder / 'set.npz'}", *MODEL, *words]
    settings += ["data.task=multilabel"] if task == "several labels" else []
    settings += ["stages=[teacher]"] if teacher_only else []
    run_experiment(compose_recipe("medmnist_int8", settings), folder / "run")
    return [read_json(path) for path in sorted((folder / "run").glob(f"*/{METRICS}"))]


def arrays(task: str, pixels: str) -> dict[str, np.ndarray]:
    """Returns the digits in MedMNIST's layout, 28 pixels a side: labels (N, 1), or (N, 3) of 0 and 1."""
    digits = load_digits()
    images, numbers = np.kron(digits.images / 16, np.ones((1, 3, 3))), digits.target
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    labels = {
        "two classes": (numbers == 3).astype(int)[:, None],
        "ten classes": numbers[:, None],
        "several labels": np.stack([numbers % 2, numbers > 4, np.isin(numbers, (0, 6, 8, 9))], 1).astype(int),
    }[task]
    train, test = train_test_split(np.arange(len(numbers)), test_size=0.3, random_state=0, stratify=numbers)
    if task == "ten classes":  # the higher a digit, the rarer it is in train: 0.7 times the one before
        order = np.random.default_rng(0).permutation(train)
        ranks = np.array([(numbers[order[:at]] == numbers[order[at]]).sum() for at in range(len(order))])
        train = order[ranks < 120 * 0.7 ** numbers[order]]
    found = {}
    for split, positions in (("train", train), ("test", test)):
        found |= {f"{split}_images": _pixels(images[positions], pixels), f"{split}_labels": labels[positions]}
    return found


def _pixels(images: np.ndarray, kind: str) -> np.ndarray:
    if kind == "16 bits":
        return np.round(images * 65535).astype(np.uint16)
    grey = np.round(images * 255).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], 3) if kind == "colour" else grey


if __name__ == "__main__":
    sys.exit(main())
