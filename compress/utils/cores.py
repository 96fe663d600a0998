"""Counts the threads that a run may start: the cores of its process, shared with jobs that run at the same time."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CGROUPS = Path("/sys/fs/cgroup")
# Loops that a waiting OpenMP thread makes before it sleeps: about as long as the pauses within a step. Fewer make a run
# slower on an idle machine, more make it slower on a busy one; tests/benchmarks/README.md has the figures.
_SPIN_COUNT = "1000"


def cores() -> int:
    """Returns the cores of this process: those it is pinned to, or fewer where its control group's quota is lower."""
    pinned = len(os.sched_getaffinity(0))
    return max(1, min(pinned, int(min(_quotas(), default=pinned))))


def share(launcher: Mapping[str, Any]) -> int:
    """Returns the cores of one job of a sweep; `launcher` is Hydra's node of the launcher."""
    name = launcher["_target_"].rpartition(".")[2]
    if name == "JoblibLauncher":
        at_once = launcher["n_jobs"] or 1
        return max(1, cores() // (at_once if at_once > 0 else max(1, cores() + 1 + at_once)))  # -1: as many as cores
    if name in ("SlurmLauncher", "LocalLauncher"):
        reserved = launcher["cpus_per_task"] or cores()
    elif name == "RayLauncher":
        reserved = launcher["ray"]["remote"].get("num_cpus", 1)  # a part of one, and 0, are one too
    else:
        reserved = cores()  # the jobs take turns
    return max(1, min(int(reserved), cores()))


def shorten_spinning() -> None:
    """Makes waiting OpenMP threads sleep sooner; must be called before torch is imported.

    By default they spin for 300,000 loops, some milliseconds. Where another process is busy on these cores, a thread
    then spends its time waiting for one that the system has stopped, and training takes many times as long. Settings of
    the user stay. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def _quotas(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Returns the cores that each control group of this process, and each parent, may use; empty without limits."""
    paths = dict(line.split(":", 2)[1:] for line in own.read_text().splitlines()) if own.is_file() else {}
    found = []
    for controllers, path in paths.items():
        if controllers == "":  # version 2
            files = [folder / "cpu.max" for folder in _upwards(cgroups, path)]
            texts = [file.read_text().split() for file in files if file.is_file()]
        elif "cpu" in controllers.split(","):
            folders = _upwards(cgroups / "cpu", path)
            texts = [_version_1(folder) for folder in folders if (folder / "cpu.cfs_quota_us").is_file()]
        else:
            continue
        found += [int(quota) / int(period) for quota, period in texts if quota not in ("max", "-1")]
    return found


def _upwards(root: Path, path: str) -> list[Path]:
    """Returns the folder of a control group and those of its parents, as far as this process sees them."""
    folder = root / path.lstrip("/")
    return [place for place in (folder, *folder.parents) if place.is_relative_to(root)]


def _version_1(folder: Path) -> list[str]:
    return [(folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
