"""Times rivals in turns, each in a process of its own, so that the machine's noise falls on all alike."""

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
TURN_MS, MOST_CALLS = 50, 20  # a turn is as many calls as fit into it, one or more
RESAMPLES = 2000


@dataclass
class Racer:
    """A process that has its file open and waits, blocked, for its turn."""

    name: str
    process: subprocess.Popen
    log: Path
    turns_ms: list[float] = field(default_factory=list)  # the median of each turn
    waited_s: float = 0.0
    waited_cpu_s: float = 0.0

    def ask(self, **task: object) -> dict:
        """Hands over a task and waits for the answer. Raises RuntimeError where the process ended."""
        with contextlib.suppress(BrokenPipeError):  # the answer tells
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict:
        """The next answer. Raises RuntimeError where the process ended without one."""
        line = self.process.stdout.readline()
        if not line:
            ended = self.process.wait()
            raise RuntimeError(f"the process of {self.name} ended with {ended}: {self.log.read_text()[-2000:]}")
        return json.loads(line)


@contextlib.contextmanager
def start_racer(name: str, job: dict, folder: Path) -> Iterator[Racer]:
    """A racer that opens its file, runs it and tells how long that took; it ends with the context.

    `folder` keeps what its libraries print, and the kernels of a compiled network for the next run.
    """
    paths = {"PYTHONPATH": str(PROJECT), "TORCHINDUCTOR_CACHE_DIR": str(folder.resolve() / "inductor")}
    log = folder / f"{job['runtime']}_{Path(job['path']).name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.racer", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=PROJECT,
            env=os.environ | paths,
        )
    try:
        yield Racer(name, process, log)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def race(racers: list[Racer], rounds: int, seed: int) -> None:
    """Waits until all are ready, then fills in what each measures: a turn in every round, in an order drawn anew."""
    order = random.Random(seed)
    ready_ms = {id(racer): min(racer.answer()["ms"]) for racer in racers}
    calls = {racer: max(1, min(MOST_CALLS, int(TURN_MS / call_ms))) for racer, call_ms in ready_ms.items()}
    for turn in range(rounds):
        for racer in order.sample(racers, len(racers)):
            told = racer.ask(task="time", calls=calls[id(racer)])
            racer.turns_ms.append(statistics.median(told["ms"]))
            if turn:  # before the first it waited for others to open their files
                racer.waited_s += told["waited_s"]
                racer.waited_cpu_s += told["waited_cpu_s"]


def ratio_of_medians(mine: list[float], theirs: list[float], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """How many times as long mine take, with a 95 % bootstrap interval (Efron 1979) over whole rounds.

    The two lists are of the same rounds, so what slowed both in one round is in both of a resample.
    Raises ValueError for lists that are empty or differ in length.
    """
    if not mine or len(mine) != len(theirs):
        raise ValueError(f"received {len(mine)} and {len(theirs)} rounds; expected the same number, one or more")
    pair = np.array([mine, theirs])
    chosen = np.random.default_rng(seed).integers(0, len(mine), (RESAMPLES, len(mine)))
    resampled = np.median(pair[:, chosen], axis=2)
    low, high = np.percentile(resampled[0] / resampled[1], [2.5, 97.5])
    middle = np.median(pair, axis=1)
    return float(middle[0] / middle[1]), (float(low), float(high))
