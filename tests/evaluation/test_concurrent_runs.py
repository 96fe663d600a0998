"""Runs beside each other are counted, and one that was killed is not."""

import os
import signal
from pathlib import Path

import pytest

from compress.evaluation import concurrent_runs
from compress.evaluation.concurrent_runs import announced, runs_beside


def test_another_run_counts_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent_runs, "FOLDER", tmp_path / "runs")
    assert runs_beside() == 0
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with announced():
            os.write(write, b".")
            signal.pause()
    os.read(ready, 1)
    with announced():
        assert runs_beside() == 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert runs_beside() == 0
    assert [path.stem for path in (tmp_path / "runs").iterdir()] == [str(child)]
