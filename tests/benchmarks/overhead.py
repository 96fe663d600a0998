"""What a tiny run spends on anything but training: `python tests/benchmarks/overhead.py [CHECKOUT ...] [--rounds 3]`.

Four stages on 8x8 images, without a cache, each time in a fresh process. Several checkouts take turns, so that other
load falls on all alike. Prints the median seconds of each stage's training, export and measuring.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = {"compute_stage": "training", "export_onnx": "export", "evaluate_stage": "measuring"}

Seconds = dict[str, list[float]]  # a part -> one figure a stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[2]])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="one run in this process; prints JSON")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(timed_run()))
        return
    runs: dict[Path, list[Seconds]] = {checkout: [] for checkout in options.checkouts}
    for _ in range(options.rounds):
        for checkout, rounds in runs.items():
            rounds.append(_run_from(checkout))
    for checkout, rounds in runs.items():
        _print_table(checkout, rounds)


def timed_run() -> Seconds:
    """The seconds of one run: of each part by stage, and as `run` of all with the reports."""
    import numpy as np
    import torch

    from compress.pipeline import stage_runner
    from compress.pipeline.run import run_pipeline
    from tests.conftest import make_tiny_config, tiny_arrays

    _know_resnet8()
    torch.set_num_threads(1)
    seconds: Seconds = {part: [] for part in PARTS.values()}
    for name, part in PARTS.items():
        setattr(stage_runner, name, _timed(getattr(stage_runner, name), seconds[part]))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "tiny.npz", **tiny_arrays())
        config = make_tiny_config(Path(folder) / "tiny.npz")
        config.cache.enabled = False
        _timed(run_pipeline, seconds.setdefault("run", []))(config, Path(folder) / "run")
    return seconds


def _know_resnet8() -> None:
    """Registers the tests' network where the zoo does not have it."""
    from functools import partial

    from compress.models import ZOO, Entry
    from compress.models.cifar_resnet import CifarResNet

    ZOO.setdefault("resnet8", Entry("", own=partial(CifarResNet, 8), small=None))


def _timed(function: Callable, seconds: list[float]) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def _run_from(checkout: Path) -> Seconds:
    done = subprocess.run(
        [sys.executable, Path(__file__).resolve(), "--once"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _print_table(checkout: Path, rounds: list[Seconds]) -> None:
    print(f"\n{checkout}\n\n| seconds | all | each stage |\n|---|---:|---|")
    for part in rounds[0]:
        stages = [statistics.median(figures) for figures in zip(*(seconds[part] for seconds in rounds), strict=True)]
        total = statistics.median(sum(seconds[part]) for seconds in rounds)
        print(f"| {part} | {total:.2f} | {', '.join(f'{figure:.2f}' for figure in stages)} |")


if __name__ == "__main__":
    main()
