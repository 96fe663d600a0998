"""Free memory: the machine's, or less where a control group of the process has a limit."""

from pathlib import Path

import pytest

from compress.utils.memory import free_bytes

GIB = 2**30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       33554432 kB\nMemAvailable:    8388608 kB\n")
    return path


def group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


def test_without_limits_it_is_the_machines(meminfo: Path, tmp_path: Path) -> None:
    assert free_bytes(meminfo, tmp_path / "none", tmp_path / "cgroup") == 8 * GIB
    assert free_bytes(tmp_path / "none") == 0
    assert free_bytes() > 0


@pytest.mark.parametrize(("limit", "left"), [("max", 8), (f"{4 * GIB}", 2), (f"{40 * GIB}", 8), (f"{GIB}", 0)])
def test_a_limit_of_a_parent_counts_without_what_files_fill(
    meminfo: Path, tmp_path: Path, limit: str, left: int
) -> None:
    names = ("memory.max", "memory.current")
    group(tmp_path / "cgroup" / "job", names, limit, 3 * GIB, f"anon {2 * GIB}\ninactive_file {GIB}\n")
    group(tmp_path / "cgroup" / "job" / "step", names, "max", GIB, "")
    (tmp_path / "own").write_text("0::/job/step\n")
    assert free_bytes(meminfo, tmp_path / "own", tmp_path / "cgroup") == left * GIB


def test_version_1_has_other_names(meminfo: Path, tmp_path: Path) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "cgroup" / "memory" / "job", names, f"{4 * GIB}", 3 * GIB, f"total_inactive_file {GIB}\n")
    (tmp_path / "own").write_text("4:cpu,cpuacct:/other\n3:memory:/job\n")
    assert free_bytes(meminfo, tmp_path / "own", tmp_path / "cgroup") == 2 * GIB
