"""The cores that a run may use, and each job's part of them under every launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.utils import cores as module
from compress.utils.cores import cores, share, shorten_spinning


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is pinned to 8 cores, in no control group."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(module, "_quotas", list)


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        ({"_target_": "a.BasicLauncher"}, 8),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 3}, 2),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 20}, 1),
        ({"_target_": "a.JoblibLauncher", "n_jobs": None}, 8),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -1}, 1),  # as many jobs as cores
        ({"_target_": "a.JoblibLauncher", "n_jobs": -5}, 2),  # four fewer, so four
        ({"_target_": "a.JoblibLauncher", "n_jobs": -50}, 8),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": 3}, 3),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": 16}, 8),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": None}, 8),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 2}}}, 2),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 0.5}}}, 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {}}}, 1),
    ],
    ids=str,
)
def test_a_job_gets_its_part_of_the_cores(eight: None, launcher: dict, threads: int) -> None:
    assert share(launcher) == threads


@pytest.mark.parametrize(("quotas", "expected"), [([], 8), ([2.5, 4.0], 2), ([0.5], 1), ([16.0], 8)])
def test_a_quota_counts_where_it_is_lower(
    eight: None, monkeypatch: pytest.MonkeyPatch, quotas: list[float], expected: int
) -> None:
    monkeypatch.setattr(module, "_quotas", lambda: quotas)
    assert cores() == expected


def control_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_quotas_are_those_of_the_own_group_and_all_around_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    control_group(tmp_path / "fs" / "job" / "step", cpu__max="max 100000")
    control_group(tmp_path / "fs" / "job", cpu__max="150000 50000")
    control_group(tmp_path / "fs" / "other", cpu__max="1 100000")
    control_group(tmp_path, cpu__max="1 100000")
    assert module._quotas(tmp_path / "fs", own) == [3.0]


def test_quotas_of_version_1_are_read_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("2:cpuacct:/job\n1:cpu,cpuset:/job\n0::/\n")
    control_group(tmp_path / "fs" / "cpu" / "job", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    control_group(tmp_path / "fs" / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert module._quotas(tmp_path / "fs", own) == [2.0]


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    assert module._quotas(tmp_path, tmp_path / "own") == []


def test_openmp_is_asked_to_sleep_soon() -> None:
    """libgomp reads its variables once, when torch loads it, and then shows what it understood."""
    command = "from compress.utils.cores import shorten_spinning; shorten_spinning(); import torch"
    variables = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", command],
        env=variables | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = next((line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line), None)
    if shown is None:
        pytest.skip("torch's OpenMP is not libgomp here")
    assert module._SPIN_COUNT in shown


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_set_for_openmp_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "ACTIVE")
    shorten_spinning()
    assert {key: os.environ.get(key) for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} == {
        "GOMP_SPINCOUNT": None,
        "OMP_WAIT_POLICY": None,
        name: "ACTIVE",
    }
