"""The headline runs: makes them as a user would, guards their accuracy, and writes the README files' figures.

    python tests/benchmarks/headlines.py [--long] [--datasets FOLDER]

The recipes run one after the other on an otherwise idle machine; one that was stopped continues where it was. The
figures go into headlines.json, and from there into README.md and this folder's README.md. Where a run is less accurate
than the recorded one by more than chance, paired on the same images with all seeds together, nothing is written and
the exit status is 1; `--accept` writes them all the same. `--long` adds Fashion-MNIST, an hour on one core.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.utils.cpu import cpu_flags, cpu_name
from compress.utils.statistics import paired_difference
from tests.benchmarks.headline_tables import BLOCKS, with_tables

ROOT = Path(__file__).resolve().parents[2]
FIGURES = Path(__file__).with_name("headlines.json")
RUNS = ROOT / "outputs" / "benchmarks" / "headlines"
DATASETS = ROOT.parent / "shared" / "datasets"

# What is recorded of a stage: keys of summary.json's row, and of the metrics in it.
ROW = ("stage", "times_smaller", "times_faster", "times_fewer_macs", "points_lost")
METRICS = (
    "deployed_top1_percent",
    "deployed_top1_ci95_percent",
    "top1_delta_ci95_points",
    "macs",
    "size_bytes",
    "latency_ms_p50",
)


@dataclass(frozen=True)
class Headline:
    """A recipe, the seeds it is run on, and what a user types besides; {datasets} stands for a folder."""

    title: str
    recipe: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    long: bool = False


HEADLINES = (
    Headline(
        "ResNet-56, CIFAR-10",
        "resnet56_cifar_int8",
        (0, 1, 2),
        (
            "teacher.checkpoint={datasets}/checkpoints/resnet56-4bfd9763.th",
            "data.root={datasets}/cifar10/cifar10_lossless_subset.npz",
        ),
    ),
    Headline("MobileNetV2, digits", "mobilenet_int8", (0, 1, 2)),
    Headline(
        "MobileNetV2, Fashion-MNIST", "fashion_mobilenet_int8", (0,), ("data.root={datasets}",), long=True
    ),
)  # fmt: skip


def main() -> int:
    """Runs the command line; returns the exit status."""
    options = parse(sys.argv[1:])
    recorded = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    found = dict(recorded)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            headline: {str(seed): pool.submit(run, headline, seed, options) for seed in headline.seeds}
            for headline in HEADLINES
            if headline.recipe in options.only and (options.long or not headline.long)
        }
        for headline, seeds in runs.items():
            figures_by_seed = {seed: future.result() for seed, future in seeds.items()}
            found[headline.recipe] = facts(headline, options) | {"seeds": figures_by_seed}
    worse = [text for name in found if name in recorded and (text := regression(recorded[name], found[name]))]
    for text in worse:
        print(text)
    if worse and not options.accept:
        return 1
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    for name, blocks in BLOCKS.items():
        readme = ROOT / name
        readme.write_text(with_tables(readme.read_text(), found, blocks))
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, default=DATASETS, help="the folder of the data and the checkpoints")
    recipes = [headline.recipe for headline in HEADLINES]
    parser.add_argument("--only", nargs="+", choices=recipes, default=recipes, help="which of them")
    parser.add_argument("--threads", type=int, default=0, help="of each run; 0: one a core")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; times are then less quiet")
    parser.add_argument("--long", action="store_true", help="Fashion-MNIST too")
    parser.add_argument("--accept", action="store_true", help="record figures that are worse than the recorded ones")
    return parser.parse_args(words)


def arguments(headline: Headline, threads: int, datasets: Path | str) -> list[str]:
    """What stands behind `python -m compress`, without the seed."""
    words = [f"recipe={headline.recipe}", *(word.format(datasets=datasets) for word in headline.overrides)]
    return [*words, f"threads={threads}"] if threads else words


def run(headline: Headline, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run, as a user's command makes it; its folder has the commit in its name."""
    folder = RUNS / commit() / f"{headline.recipe}_{seed}"
    words = arguments(headline, options.threads, options.datasets)
    words += [f"seed={seed}", f"hydra.run.dir={folder}", "cache.enabled=false"]
    subprocess.run([sys.executable, "-m", "compress", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return figures(folder)


def figures(folder: Path) -> dict[str, Any]:
    """Of a finished run: a row a stage, and which test images the last file has right, for later comparisons."""
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    records = [json.loads((folder / stage["stage"] / "stage.json").read_text()) for stage in stages]
    predictions = load_file(folder / stages[-1]["stage"] / "predictions.safetensors")
    right = predictions["deployed_top1"] == predictions["labels"]
    return {
        "images": len(right),
        "minutes": round(sum(record["duration_s"] for record in records) / 60, 1),
        "data_fingerprint": records[-1]["inputs"]["data_fingerprint"],
        "right": np.packbits(right).tobytes().hex(),
        "stages": [
            {name: stage[name] for name in ROW} | {name: stage["metrics"][name] for name in METRICS} for stage in stages
        ],
    }


def facts(headline: Headline, options: argparse.Namespace) -> dict[str, Any]:
    """Where and when a headline's runs were made."""
    return {
        "title": headline.title,
        "command": " ".join(["python -m compress", *arguments(headline, options.threads, "DATASETS")]),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu_name()} ({', '.join(cpu_flags())})",
        "cores": len(os.sched_getaffinity(0)),
        "jobs": options.jobs,
    }


def commit() -> str:
    """The commit that is checked out; with -changed where files differ from it."""
    changed = _git("status", "--porcelain", "--", "compress", "conf", "recipes")
    return _git("rev-parse", "--short=10", "HEAD") + ("-changed" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def regression(recorded: dict[str, Any], found: dict[str, Any]) -> str | None:
    """A sentence where `found` has fewer test images right than `recorded` by more than chance, all seeds together."""
    gained = lost = count = 0
    for seed in recorded["seeds"].keys() & found["seeds"].keys():
        before, now = recorded["seeds"][seed], found["seeds"][seed]
        if before["data_fingerprint"] != now["data_fingerprint"]:
            return (
                f"{found['command']}: seed {seed} has other images, or another share of them as validation, than the "
                "recorded run; the two cannot be compared in pairs. --accept records the new one"
            )
        was, is_ = bits(before), bits(now)
        gained, lost, count = gained + int((is_ & ~was).sum()), lost + int((was & ~is_).sum()), count + len(was)
    if not count:
        return None
    delta, (low, high) = paired_difference(gained, lost, count)
    if high >= 0:
        return None
    return (
        f"{found['command']}: {delta:+.2f} points (95 % interval {low:.2f} to {high:.2f}) against commit "
        f"{recorded['commit']} on the same {count} images of {len(recorded['seeds'])} seeds; "
        "--accept records the worse figures"
    )


def bits(figures: dict[str, Any]) -> np.ndarray:
    """Of each test image whether the file has it right, bool (N,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(figures["right"]), np.uint8))[: figures["images"]].astype(bool)


if __name__ == "__main__":
    sys.exit(main())
