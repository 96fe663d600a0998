"""Int8 against its peers on three networks: accuracy, agreement with float, latency and throughput, from one run.

`python tests/benchmarks/int8.py` prints the tables of this folder's README. It reads the shared data sets and wants a
machine that does nothing else; `pip install -e ".[benchmark]"` installs the peers. The first run makes the peers'
files, later ones race them as they are: delete `--folder` to make them anew. The project's own file is always made
anew.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `tests`

from compress.evaluation.environment import environment
from compress.utils.errors import UserError
from compress.utils.statistics import paired_difference
from tests.benchmarks.contenders import FLOAT, Contender, build_contenders
from tests.benchmarks.networks import CHECKPOINTS, Subject, load_subject
from tests.benchmarks.racing import PROJECT, race, start_racer
from tests.benchmarks.report import Result, Score, report

BATCH = 32  # of throughput, and of the pass over the test images
FEWEST_ROUNDS = 5
PEERS = ("openvino", "nncf")  # packages that the project itself does without


def main() -> int:
    """Runs the command line; returns the exit status: 0, or 2 for a mistake of the user's."""
    options = parse(sys.argv[1:])
    try:
        results = [measure(load_subject(name, options.datasets), options) for name in options.networks]
    except UserError as error:
        print(f"int8: {error}", file=sys.stderr)
        return 2
    facts = environment(max(options.threads))
    facts["versions"] |= {name: importlib.metadata.version(name) for name in PEERS if importlib.util.find_spec(name)}
    facts |= {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "command": " ".join(["python tests/benchmarks/int8.py", *sys.argv[1:]]),
        "repetitions": options.repetitions,
    }
    raw = {"environment": facts, "networks": [result.as_json() for result in results]}
    (options.folder / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(report(results, facts))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS), help="which of them")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads, each timed")
    parser.add_argument("--repetitions", type=int, default=30, help="rounds of turns at batch 1; a third at batch 32")
    parser.add_argument("--datasets", type=Path, default=PROJECT.parent / "shared" / "datasets", help="the data sets")
    parser.add_argument(
        "--folder",
        type=Path,
        default=PROJECT / "outputs" / "benchmarks" / "int8",
        help="where results.json and all files go",
    )
    options = parser.parse_args(arguments)
    options.folder, options.datasets = options.folder.resolve(), options.datasets.resolve()
    return options


def measure(subject: Subject, options: argparse.Namespace) -> Result:
    """Builds all contenders, lets each predict the test images once, and races the best setting of each."""
    folder = options.folder / subject.name
    say(f"{subject.name}: building the contenders")
    with contextlib.redirect_stdout(sys.stderr):
        contenders, left_out = build_contenders(subject, folder)
    if not (folder / "images.npy").is_file():
        np.save(folder / "images.npy", subject.images.numpy())
    predictions = {contender: predict(contender, folder, max(options.threads)) for contender in contenders}
    scores = compare(predictions, subject.labels.numpy())
    chosen = best_settings(scores)
    result = Result(subject.name, len(subject.labels), len(subject.calibration), scores, left_out)
    for batch, rounds in ((1, options.repetitions), (BATCH, max(FEWEST_ROUNDS, options.repetitions // 3))):
        for threads in options.threads:
            say(f"{subject.name}: {len(chosen)} take turns at batch {batch}, threads: {threads}")
            result.times_ms[threads, batch], waited = time_in_turns(chosen, folder, threads, batch, rounds)
            result.waiting_cpu_percent = max(result.waiting_cpu_percent, waited)
    return result


def predict(contender: Contender, folder: Path, threads: int) -> np.ndarray:
    """Class (N,) of each test image; taken anew only where the file is newer than its last predictions."""
    logits = folder / f"{contender.path.name}.{contender.runtime}.npy"
    if not logits.is_file() or logits.stat().st_mtime < contender.path.stat().st_mtime:
        say(f"  {contender.name}: predicting")
        with start_racer(contender.name, job(contender, folder, threads, BATCH), folder) as racer:
            racer.answer()  # it is ready
            racer.ask(task="predict", to=str(logits))
    return np.load(logits).argmax(1)


def compare(predictions: dict[Contender, np.ndarray], labels: np.ndarray) -> dict[Contender, Score]:
    """Each contender's accuracy, and how it differs from the float network's on the same images."""
    (reference,) = (classes for contender, classes in predictions.items() if contender.tool == FLOAT)
    scores = {}
    for contender, classes in predictions.items():
        gained = int(((classes == labels) & (reference != labels)).sum())
        lost = int(((classes != labels) & (reference == labels)).sum())
        scores[contender] = Score(
            100 * float((classes == labels).mean()),
            100 * float((classes == reference).mean()),
            *paired_difference(gained, lost, len(labels)),
        )
    return scores


def best_settings(scores: dict[Contender, Score]) -> list[Contender]:
    """Of the settings of each tool and form, which run equally fast, the one that agrees best with float.

    That it is chosen on the test images themselves favours the peers, which have several settings; ours has one.
    """
    best: dict[tuple[str, str], Contender] = {}
    for contender, score in scores.items():
        kind = (contender.tool, contender.form)
        if kind not in best or score.agreement_percent > scores[best[kind]].agreement_percent:
            best[kind] = contender
    return list(best.values())


def time_in_turns(
    contenders: list[Contender], folder: Path, threads: int, batch: int, rounds: int
) -> tuple[dict[Contender, list[float]], float]:
    """Milliseconds a call, the median of each round's turn; and the most that a waiting process computed, in percent.

    All processes are there for the whole race; all but one wait.
    """
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(start_racer(contender.name, job(contender, folder, threads, batch), folder))
            for contender in contenders
        ]
        race(racers, rounds, seed=0)
        times = {contender: racer.turns_ms for contender, racer in zip(contenders, racers, strict=True)}
        return times, max(100 * racer.waited_cpu_s / racer.waited_s for racer in racers)


def job(contender: Contender, folder: Path, threads: int, batch: int) -> dict:
    """What a racer's process is told at its start."""
    return {
        "runtime": contender.runtime,
        "path": str(contender.path),
        "images": str(folder / "images.npy"),
        "threads": threads,
        "batch": batch,
    }


def say(text: str) -> None:
    """Progress, on stderr: the report alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
