"""Seconds of a training epoch alone and beside a busy process: `python tests/benchmarks/busy_neighbour.py`.

The epochs are those of `recipe=mobilenet_int8`'s teacher, as the command trains it. Each setting of OpenMP's waiting
threads takes its turn alone and beside a process that keeps one core busy; a ratio is one of medians.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 4  # of a turn; the first is warm-up
BUSY = "while True: pass"
DEFAULT = "libgomp's default"
# The environment of each contender; ours is what the command sets by itself.
CONTENDERS = {"ours": {}, DEFAULT: {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (%(default)s)")
    parser.add_argument("--spin-counts", nargs="*", default=[], metavar="N", help="further values of GOMP_SPINCOUNT")
    options = parser.parse_args()
    contenders = CONTENDERS | {f"spin count {count}": {"GOMP_SPINCOUNT": count} for count in options.spin_counts}
    seconds: dict[tuple[str, bool], list[float]] = {}
    for turn in range(options.rounds):
        for name, variables in contenders.items():
            for beside in (False, True):
                seconds.setdefault((name, beside), []).extend(epochs(variables, beside))
                print(f"turn {turn + 1}, {name}: {seconds[name, beside][-EPOCHS + 1 :]}", file=sys.stderr, flush=True)
    print(table({key: statistics.median(values) for key, values in seconds.items()}))


def table(medians: dict[tuple[str, bool], float]) -> str:
    """A row a contender, from its median seconds alone and beside a busy process."""
    lines = [
        "| waiting threads | alone, s | against libgomp's default | beside a busy process, s | against alone |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(name for name, _ in medians):
        alone, beside = medians[name, False], medians[name, True]
        share = alone / medians[DEFAULT, False]
        lines.append(f"| {name} | {alone:.2f} | {share:.2f} | {beside:.2f} | {beside / alone:.2f} |")
    return "\n".join(lines)


def epochs(variables: dict[str, str], beside: bool) -> list[float]:
    """Seconds of the epochs of one training, without the first."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "compress", "recipe=mobilenet_int8", "stages=[teacher]"]
            command += [f"teacher.epochs={EPOCHS}", f"hydra.run.dir={folder}", "cache.enabled=false"]
            environment = os.environ | variables
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            return ends_to_seconds((Path(folder) / "compress.log").read_text())
    finally:
        if busy:
            busy.kill()
            busy.wait()


def ends_to_seconds(log: str) -> list[float]:
    """From the times at which the log says that an epoch ended, the seconds between one and the next."""
    times = re.findall(r"^(\S+ \S+) INFO .*: epoch \d+ of", log, re.MULTILINE)
    ends = [datetime.strptime(time, "%Y-%m-%d %H:%M:%S,%f") for time in times]
    return [(end - start).total_seconds() for start, end in pairwise(ends)]


if __name__ == "__main__":
    main()
