"""Energy is what the counters moved by, over the images that ran; without a counter it is missing, with the cause."""

import os
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from compress.evaluation import benchmark, energy
from compress.evaluation.benchmark import Benchmark
from compress.evaluation.benchmark_job import ENERGY, MEMORY, PROFILE, TIME, BenchmarkJob
from compress.evaluation.energy import count_joules, no_counter
from compress.utils.missing import Unavailable

from .conftest import QUICK, SHAPE

WRAPS_AT = 262_143_328_850  # microjoules, as on a real CPU

needs_codecarbon = pytest.mark.skipif(find_spec("codecarbon") is None, reason="the extra energy is not installed")


def write_counters(folder: Path, **microjoules: int) -> Path:
    """A tree as Linux shows it, with two packages and a part of the first one, which that has counted already."""
    for name, label in (("0", "package-0"), ("0:0", "core"), ("1", "package-1")):
        place = folder / "intel-rapl" / f"intel-rapl:{name[0]}" / (f"intel-rapl:{name}" if ":" in name else "")
        place.mkdir(parents=True, exist_ok=True)
        for name_of_file, text in (("name", label), ("max_energy_range_uj", WRAPS_AT)):
            if not (place / name_of_file).exists():  # a reader would find it empty for a moment
                (place / name_of_file).write_text(f"{text}\n")
        part = place / "energy_uj.part"
        part.write_text(f"{microjoules[label.replace('-', '')]}\n")
        part.replace(place / "energy_uj")  # whole at any time, as the kernel's
        link = folder / f"intel-rapl:{name}"
        if not link.exists():
            link.symlink_to(place)
    return folder


def measure(file: Path, counters: Path, threads: int = 1) -> Benchmark:
    return benchmark.benchmark(file, file, SHAPE, QUICK, threads, counters=counters)


def joule_per_image(file: Path, counters: Path) -> float | Unavailable:
    return measure(file, counters).figures["energy_joule_per_image"]


@pytest.fixture
def counters(tmp_path: Path) -> Path:
    return write_counters(tmp_path / "powercap", package0=5_000_000, core=1_000_000, package1=WRAPS_AT - 1_000_000)


@needs_codecarbon
def test_the_packages_are_added_up_past_their_wrap_and_their_parts_are_not(counters: Path) -> None:
    """7 - 5 joules of the first package, 3 of the second: one to where it starts again at 0, and two."""
    work = lambda: write_counters(counters, package0=7_000_000, core=1_900_000, package1=2_000_000)
    assert count_joules(work, counters) == pytest.approx(5, rel=1e-5)


@needs_codecarbon
def test_counters_that_stand_still_are_no_figure(counters: Path, file: Path) -> None:
    assert count_joules(lambda: None, counters) == 0
    assert joule_per_image(file, counters) == Unavailable(f"the counters in {counters} did not move while the file ran")


@needs_codecarbon
def test_a_file_is_counted_while_it_runs(counters: Path, file: Path) -> None:
    stop = threading.Event()

    def tick() -> None:
        joules = 0
        while not stop.wait(0.01):
            joules += 1
            write_counters(counters, package0=1_000_000 * joules, core=0, package1=0)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        assert joule_per_image(file, counters) > 0
    finally:
        stop.set()
        thread.join()


def test_joules_are_shared_among_the_images(counters: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[BenchmarkJob] = []
    times = {"single_ms": [[1.0]], "batch_ms": [[1.0]]}
    answer = {MEMORY: {"peak_memory_bytes": 1}, TIME: times, PROFILE: {}, ENERGY: {"joules": 6.0, "images": 4}}
    monkeypatch.setattr(energy, "find_spec", lambda name: "there")
    monkeypatch.setattr(benchmark, "run_job", lambda job: jobs.append(job) or answer)
    assert measure(file, counters, threads=3).figures["energy_joule_per_image"] == 1.5
    (job,) = jobs
    assert (job.tasks[-1], job.threads, job.file, job.counters) == (ENERGY, 3, str(file), str(counters))


def test_nothing_is_counted_beside_other_runs(counters: Path, file: Path) -> None:
    found = benchmark.benchmark(file, file, SHAPE, QUICK, 1, no_energy="2 other runs", counters=counters)
    assert found.figures["energy_joule_per_image"] == Unavailable("2 other runs")


def test_a_machine_without_counters_says_which_file_is_not_there(tmp_path: Path, file: Path) -> None:
    missing = joule_per_image(file, tmp_path)
    assert missing.cause.startswith(f"{tmp_path}/intel-rapl:0/energy_uj is not there: ")
    assert missing.cause == no_counter(tmp_path)


def test_a_counter_that_may_not_be_read_is_named_with_the_mend(counters: Path, monkeypatch) -> None:
    """Of two packages the second: the sum over one would be too small."""
    monkeypatch.setattr(os, "access", lambda path, mode: "intel-rapl:1" not in str(path))
    mend = f"sudo chmod a+r {counters}/intel-rapl:*/energy_uj"
    assert no_counter(counters) == f"{counters}/intel-rapl:1/energy_uj may not be read: {mend}"


def test_without_the_extra_nothing_is_counted(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    assert 'pip install "compress[energy]"' in no_counter(counters)
