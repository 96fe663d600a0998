"""The lock: one holder at a time, a dead one is taken over from, a living one never."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.utils import file_lock as lock
from compress.utils.file_lock import lock_file

HOLD = """
import sys, time
from pathlib import Path
from compress.utils.file_lock import lock_file
with lock_file(Path(sys.argv[1]), "key"):
    print("held", flush=True)
    time.sleep(600)
"""


def refuse(holder: dict) -> None:
    raise RuntimeError(f"pid {holder['pid']}")


def count_up(folder: Path, times: int) -> None:
    """Reads, waits and writes under the lock: without it, counts would be lost."""
    for _ in range(times):
        with lock_file(folder, "key"):
            value = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(value + 1))


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.001)
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=count_up, args=(tmp_path, 10)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "count").read_text() == "40"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_living_holder_is_named_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.001)
    with lock_file(tmp_path, "key"):
        with pytest.raises(RuntimeError, match=f"pid {os.getpid()}"), lock_file(tmp_path, "key", refuse):
            pass
        with lock_file(tmp_path, "other"):
            pass
    with lock_file(tmp_path, "key", refuse):
        pass


def test_a_killed_holder_is_taken_over_from_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"pid {holder.pid}"), lock_file(tmp_path, "key", refuse):
            pass
        holder.kill()
    with lock_file(tmp_path, "key", refuse):
        assert f"took over from process {holder.pid}" in caplog.text
    assert not list(tmp_path.iterdir())


class Elsewhere:
    """A clock that goes on only while a process waits, and a holder on another machine, which beats for a while."""

    def __init__(self, path: Path, beats: int):
        self.path, self.beats, self.polls, self.now = path, beats, 0, 0.0
        self.beat()

    def beat(self) -> None:
        self.path.write_text(f'{{"host": "elsewhere", "boot": "b", "pid": 1, "beat": {self.polls}}}')

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.polls += 1
        if self.polls <= self.beats:
            self.beat()


def test_another_machine_is_taken_for_dead_when_its_beat_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere(tmp_path / "key.0.lock", beats=1000)
    monkeypatch.setattr(lock, "time", elsewhere)
    with lock_file(tmp_path, "key"):
        assert [path.name for path in tmp_path.glob("*.1.lock")] == ["key.1.lock"]
    lived = 1000 * lock.POLL_S
    assert lived + lock.STALE_S < elsewhere.now <= lived + lock.STALE_S + 2 * lock.POLL_S
    assert not list(tmp_path.iterdir())


def test_the_holder_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with lock_file(tmp_path, "key"):
        (path,) = tmp_path.glob("*.lock")
        first = path.read_text()
        deadline = time.monotonic() + 60
        while path.read_text() == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
