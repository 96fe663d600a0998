"""The whole zoo through one recipe: accuracy, MACs, size and latency of each network after each stage, as Markdown.

`python tests/benchmarks/zoo.py --short` prints the table of this folder's README and takes hours. A run that was
stopped goes on: whole stages are taken from its folder and from the cache. A network that fails has a row with the
reason, and the status is 1.
"""

import argparse
import contextlib
import datetime
import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.config.data_settings import DataConfig
from compress.config.schema import CacheConfig, Config
from compress.config.stage_settings import TeacherConfig
from compress.evaluation.environment import environment
from compress.models import ZOO
from compress.pipeline.experiment import run_experiment
from compress.utils.files import read_json
from compress.utils.units import count_text, size_text

FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "benchmarks" / "zoo"
STAGES = {"01_teacher": "teacher", "02_prune": "pruned", "03_distill": "distilled", "04_quantize": "int8"}


def main() -> int:
    """Runs the command line; returns the exit status."""
    options = parse(sys.argv[1:])
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    log = logging.getLogger("compress")
    log.setLevel(logging.INFO)
    failed = {}
    for name in options.networks:
        log.info("=== %s", name)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to stdout
                run_experiment(config_for(name, options), options.folder / name)
        except Exception as error:  # the table says so; the other networks go on
            log.exception(name)
            failed[name] = " ".join(str(error).split())
    show = short_table if options.short else table
    print(show([name for name in options.networks if name not in failed], options.folder))
    for name, reason in failed.items():
        print(f"\n{name}: {reason}")
    facts = environment(options.threads) | {"cores": os.cpu_count(), "date": datetime.date.today().isoformat()}
    print(f"\n`{' '.join(['python tests/benchmarks/zoo.py', *sys.argv[1:]])}`: {json.dumps(facts)}")
    return int(bool(failed))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=ZOO, default=list(ZOO), metavar="NAME", help="which of them")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side (%(default)s)")
    parser.add_argument("--teacher-epochs", type=int, default=TeacherConfig().epochs, help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of training and of what is timed (%(default)s)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="%(default)s")
    parser.add_argument("--short", action="store_true", help="a row a network, as in the README")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="a folder a network, and the cache")
    return parser.parse_args(arguments)


def config_for(name: str, options: argparse.Namespace) -> Config:
    """The defaults, on digits: the learning rates are the same for all networks but those without batch norm."""
    config = Config(
        data=DataConfig(image_size=options.image_size),
        teacher=TeacherConfig(model=name, epochs=options.teacher_epochs),
        cache=CacheConfig(dir=str(options.folder / "cache")),
        threads=options.threads,
    )
    config.train.precision = options.precision
    if name.startswith("squeezenet"):  # with SGD its last ReLU dies within an epoch, whatever the learning rate
        config.train.optimizer, config.data.batch_size = "adamw", 32
        for stage in (config.teacher, config.prune, config.distill, config.quantize):
            stage.lr = 3e-4
    return config


def table(names: list[str], folder: Path) -> str:
    """A row a network and stage, of their files; against the network's own teacher."""
    rows = ["| network | stage | top-1 % | 95 % range | MACs | size | ms |", "|---|---|---:|---|---:|---:|---:|"]
    for name in names:
        for row in read_json(folder / name / "summary.json")["stages"]:
            metrics = row["metrics"]
            low, high = metrics["deployed_top1_ci95_percent"]
            times = f"{metrics['latency_ms_p50']:.2f} ({row['times_faster']:.2f}x)"
            cells = [
                name, STAGES[row["stage"]], f"{metrics['deployed_top1_percent']:.2f}", f"{low:.2f}-{high:.2f}",
                f"{count_text(metrics['macs'])} ({row['times_fewer_macs']:.2f}x)",
                f"{size_text(metrics['size_bytes'])} ({row['times_smaller']:.2f}x)", times,
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def short_table(names: list[str], folder: Path) -> str:
    """A row a network: top-1 of the files of all stages, and what the teacher's came to in the end."""
    rows = [
        f"| network | {' | '.join(f'{name} %' for name in STAGES.values())} | MACs | size | ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        stages = read_json(folder / name / "summary.json")["stages"]
        first, last = stages[0]["metrics"], stages[-1]["metrics"]
        cells = [
            name, *(f"{row['metrics']['deployed_top1_percent']:.1f}" for row in stages),
            f"{count_text(first['macs'])} to {count_text(last['macs'])}",
            f"{size_text(first['size_bytes'])} to {size_text(last['size_bytes'])}",
            f"{first['latency_ms_p50']:.2f} to {last['latency_ms_p50']:.2f} ({stages[-1]['times_faster']:.1f}x)",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
