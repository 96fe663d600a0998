"""Makes the rows of a benchmark in processes and keeps them in a JSON file, so that one that was stopped goes on."""

import contextlib
import datetime
import logging
import multiprocessing
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.utils.cpu import cpu_flags, cpu_name
from compress.utils.errors import UserError
from compress.utils.file_lock import lock_file
from compress.utils.files import read_json, write_json
from tests.benchmarks.headlines import DATASETS

log = logging.getLogger("compress")

Row = dict[str, Any]


class CannotMakeError(Exception):
    """A row has no figures, for a reason that belongs into the table."""


def add_options(parser: ArgumentParser, out: Path) -> None:
    """Adds the options of every benchmark that keeps rows."""
    parser.add_argument("--table", action="store_true", help="print the tables at the end")
    parser.add_argument("--datasets", type=Path, default=DATASETS, help="the folder of the data and the checkpoints")
    parser.add_argument("--threads", type=int, default=0, help="of each job; 0: one a core")
    parser.add_argument("--jobs", type=int, default=1, help="networks made at once, a process each")
    parser.add_argument("--out", type=Path, default=out, help="the JSON file of all rows; runs go beside it")


def make_and_print(
    jobs: Sequence[Any],
    make: Callable[[Any, Namespace], Row],
    tables: Callable[[list[Row]], str],
    options: Namespace,
) -> None:
    """Makes the missing rows of the jobs, and prints the tables of all rows where they are asked for."""
    make_missing(jobs, make, options)
    if options.table:
        print(tables(list(finished(options.out).values())))


def by_series(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Returns the rows in groups that agree in all that `names` lists."""
    series: dict[tuple, list[Row]] = {}
    for row in rows:
        series.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(series.values())


def make_missing(jobs: Sequence[Any], make: Callable[[Any, Namespace], Row], options: Namespace) -> None:
    """Makes the rows of the jobs, frozen dataclasses, that `options.out` lacks, `options.jobs` at once."""
    done = finished(options.out)
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang in its threads
    with ProcessPoolExecutor(options.jobs, spawn, _start_log) as pool:
        for future in [pool.submit(_make, job, make, options) for job in jobs if key_of(job) not in done]:
            future.result()


def key_of(job: Any) -> str:
    """Returns the row's name in the JSON file."""
    return " ".join(str(value) for value in asdict(job).values())


def finished(path: Path) -> dict[str, Row]:
    """Returns the rows of earlier runs, by their jobs' keys."""
    return read_json(path) if path.is_file() else {}


def figures(right: Tensor, teacher_right: Tensor) -> Row:
    """Returns top-1, and which test images (N,) the network and the teacher have right, for later comparisons."""
    packed = {"right": right, "teacher_right": teacher_right}
    return {
        "images": len(right),
        "top1_percent": 100 * float(right.double().mean()),
        **{name: np.packbits(values.numpy()).tobytes().hex() for name, values in packed.items()},
    }


def machine_text(row: Row) -> str:
    """Returns the commit, the date and the machine that a row was made on, as a sentence."""
    threads = row["threads"] or row["cores"]
    machine = f"{row['cores']} cores of {row['cpu']}, threads: {threads}, jobs at once: {row['jobs']}"
    return f"Commit {row['commit']}, {row['date']}, {machine}"


def _start_log() -> None:
    """Shows the progress of a job's stages on stderr."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)


def _make(job: Any, make: Callable[[Any, Namespace], Row], options: Namespace) -> None:
    """Makes a row and adds it to the file: its figures, or the error in their place."""
    key = key_of(job)
    log.info("=== %s", key)
    row = asdict(job) | _facts(options)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the tables alone go to stdout
            row |= make(job, options)
    except (UserError, CannotMakeError) as error:
        row["error"] = str(error)
    log.info("=== %s: %s", key, row.get("error") or f"{row['top1_percent']:.2f} %")
    with lock_file(options.out.parent, options.out.stem):
        write_json(options.out, finished(options.out) | {key: row})


def _facts(options: Namespace) -> Row:
    """Returns when and where a row is made."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu_name()} ({', '.join(cpu_flags())})",
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "jobs": options.jobs,
    }
