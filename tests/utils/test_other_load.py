"""The cores that other programs keep busy are counted without this process and its children."""

import subprocess
import sys
from pathlib import Path

import pytest

from compress.utils import other_load
from compress.utils.other_load import OtherLoad, _children, _own_s


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of two cores, of which this process may use both; 100 ticks a second."""
    monkeypatch.setattr(other_load, "_PROC", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    return tmp_path


def write_stat(proc: Path, ticks: int) -> None:
    (proc / "stat").write_text(f"cpu 9 9 9 9\ncpu0 {ticks} 0 0 77\ncpu1 0 0 {ticks} 77\ncpu2 5000 0 0 0\nintr 1\n")


def test_what_this_process_spends_is_no_other_load(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, spent = iter([0.0, 10.0]), iter([1.0, 6.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    monkeypatch.setattr(other_load, "_own_s", lambda: next(spent))
    write_stat(proc, 1000)
    load = OtherLoad()
    write_stat(proc, 1750)  # 15 s on two cores in 10 s, 5 of them our own
    assert load.cores() == pytest.approx(1.0)


def test_without_a_count_there_is_no_other_load(proc: Path) -> None:
    assert OtherLoad().cores() == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc of Linux here")
def test_the_time_of_children_is_ones_own() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = _own_s()
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert child.pid in _children(other_load.os.getpid())
        assert _own_s() - before >= 0.25
        child.communicate(b"\n")
