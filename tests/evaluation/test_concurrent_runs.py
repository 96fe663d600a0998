"""Runs beside each other are counted, and one that was killed is not."""

import os
import signal
from pathlib import Path

import pytest

from compress.evaluation import concurrent_runs
from compress.evaluation.concurrent_runs import count_concurrent_runs, registered_run


def test_another_run_counts_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent_runs, "FOLDER", tmp_path / "runs")
    assert count_concurrent_runs() == 0
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with registered_run():
            os.write(write, b".")
            signal.pause()
    os.read(ready, 1)
    with registered_run():
        assert count_concurrent_runs() == 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert count_concurrent_runs() == 0
    assert [path.stem for path in (tmp_path / "runs").iterdir()] == [str(child)]
