"""The command line: a mistake ends in one line that helps, and a killed run goes on to the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.models import Architecture, build
from compress.utils.files import MODEL, STAGE, digest_of_file
from tests.conftest import tiny_arrays

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["01_teacher", "02_prune", "03_distill", "04_quantize"]

Run = Callable[..., subprocess.CompletedProcess]  # (folder, *arguments)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "compress", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments, f"hydra.run.dir={folder}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen]:
    """A process that forks for each command line."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forked_commands"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


@pytest.fixture
def run_forked(forks: subprocess.Popen, tmp_path: Path) -> Run:
    """As `run`, in a fork of a process that has imported the package."""

    def run_forked(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
        words, outputs = [*arguments, f"hydra.run.dir={folder}"], [tmp_path / "stdout", tmp_path / "stderr"]
        forks.stdin.write(json.dumps([words, *map(str, outputs)]) + "\n")
        status = int(forks.stdout.readline())
        return subprocess.CompletedProcess(words, status, *(path.read_text() for path in outputs))

    return run_forked


def tiny(npz: Path) -> list[str]:
    return [
        "recipe=mobilenet_int8", "data=npz", f"data.root={npz}", "data.image_size=8", "data.batch_size=32",
        "teacher.model=resnet8", "teacher.epochs=1", "prune.round_to=1", "prune.epochs=1",
        "prune.reconstruction_samples=32", "distill.epochs=1", "quantize.epochs=1", "quantize.calibration_samples=32",
        "measure.repetitions=3", "measure.batch_size=2", "threads=1", "cache.enabled=false",
    ]  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """The contract's end of a run that cannot be: not 0, one last line with three parts, no traceback."""
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("compress: received ")
    assert "; expected " in last
    assert "; to mend it: " in last
    assert "Traceback" not in done.stderr + done.stdout
    for part in parts:
        assert part in last


# One that Hydra finds, and one that the run finds.
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["recipe=nope"],
            ["'recipe/nope'", "expected one of fashion_mobilenet_int8, medmnist_int8,"],
        ),
        (["recipe=mobilenet_int8", "data=npz", "data.root=nowhere.npz"], ["data.root=nowhere.npz"]),
    ],
    ids=lambda value: "-".join(value[-1:]) if isinstance(value, list) else None,
)
def test_a_process_ends_with_the_mistake(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    assert_refused(run(tmp_path / "run", *arguments), *parts)
    assert not list(tmp_path.glob("run/0*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["You must specify 'recipe'"]),
        (["recipe=mobilenet_int8", "prune.ratio=1.5"], ["prune.ratio=1.5", "from 0.0 to 0.95"]),
        (["recipe=mobilenet_int8", "prune.ratio=half"], ["prune.ratio", "could not be converted to Float"]),
        (["recipe=mobilenet_int8", "prune.ratoi=0.5"], ["prune.ratoi"]),
        (["recipe=mobilenet_int8", "data=nope"], ["data/nope", "cifar10, coco, csv, digits"]),
        (["recipe=mobilenet_int8", "stages=[teacher,quantize,prune]"], ["quantize last"]),
        (
            ["recipe=mobilenet_int8", "stages=[teacher,shrink]"],
            ["shrink", "teacher, prune, search_architecture, factorize, distill, early_exit, dynamic_width, quantize"],
        ),
        (["recipe=mobilenet_int8", "teacher.model=resnet19"], ["teacher.model=resnet19", "mobilenet_v2"]),
        (["recipe=mobilenet_int8", "distill.student=nope"], ["distill.student=nope"]),
        (["recipe=mobilenet_int8", "data=imagefolder"], ["data.root=None"]),
        (["recipe=resnet56_cifar_int8"], ["teacher.epochs=0", "teacher.checkpoint=FILE"]),
    ],
    ids=lambda value: "-".join(value[-1:]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_in_one_line(run_forked: Run, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    assert_refused(run_forked(tmp_path / "run", *arguments), *parts)
    assert not list(tmp_path.glob("run/0*"))


def test_data_that_cannot_be_used_ends_in_one_line(run_forked: Run, tmp_path: Path) -> None:
    one_class = tiny_arrays() | {"train_labels": np.zeros(120, np.int64), "test_labels": np.zeros(45, np.int64)}
    np.savez(tmp_path / "bad.npz", **one_class)
    assert_refused(run_forked(tmp_path / "run", *tiny(tmp_path / "bad.npz")), "one class only")


def test_a_checkpoint_of_another_architecture_leaves_no_stage(run_forked: Run, tmp_path: Path, tiny_npz: Path) -> None:
    torch.save(build(Architecture("resnet8", "small", 1, 3)).state_dict(), tmp_path / "other.pth")
    done = run_forked(
        tmp_path / "run", *tiny(tiny_npz), "teacher.model=resnet20", f"teacher.checkpoint={tmp_path}/other.pth"
    )
    assert_refused(done, "other.pth", "lacks layer1.1")
    assert not list(tmp_path.glob(f"run/*/{STAGE}"))


def test_a_corrupt_image_leaves_no_stage(run_forked: Run, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, colour in (("red", 200), ("dark", 10)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (12, 12), (colour, number, 0)).save(
                    tmp_path / "data" / split / label / f"{number}.png"
                )
    (tmp_path / "data" / "test" / "red" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    arguments = [*tiny(tmp_path), "data=imagefolder", f"data.root={tmp_path}/data", "data.workers=1"]
    assert_refused(run_forked(tmp_path / "run", *arguments), "test/red/5.png")
    assert not list(tmp_path.glob(f"run/*/{STAGE}"))


def test_a_folder_that_cannot_be_written_ends_in_one_line(run_forked: Run, tmp_path: Path, tiny_npz: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(run_forked(tmp_path / "file" / "run", *tiny(tiny_npz)), "Not a directory")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_leaves_no_stage_to_trust(small_disk: Path, tiny_npz: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4_000_000))
    done = run(small_disk / "run", *tiny(tiny_npz), "stages=[teacher]")
    assert_refused(done, "No space left on device")
    assert not list(small_disk.glob(f"run/*/{STAGE}"))
    (small_disk / "ballast").unlink()
    assert run(small_disk / "run", *tiny(tiny_npz), "stages=[teacher]").returncode == 0


def test_a_read_only_disk_ends_in_one_line(small_disk: Path, tiny_npz: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_refused(run(small_disk / "run", *tiny(tiny_npz)), "Read-only file system")


def kill_when(folder: Path, sign: str, *arguments: str) -> None:
    """Starts a run and kills it, for good, once it has printed `sign`."""
    process = subprocess.Popen(
        command(*arguments, f"hydra.run.dir={folder}"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        for line in process.stdout:
            if sign in line:
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail(f"the run ended without {sign!r}")
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_in_its_stages_ends_as_one_that_was_not(run_forked: Run, tmp_path: Path, tiny_npz: Path) -> None:
    arguments = tiny(tiny_npz)
    whole = run_forked(tmp_path / "whole", *arguments)
    assert whole.returncode == 0, whole.stderr
    for done, sign in ((1, "prune: starts"), (3, "quantize: epoch 1")):  # tests/faults kills at any moment
        kill_when(tmp_path / "killed", sign, *arguments)
        assert sorted(path.parent.name for path in tmp_path.glob(f"killed/*/{STAGE}")) == STAGES[:done]
    last = run(tmp_path / "killed", *arguments)
    assert last.returncode == 0, last.stderr
    assert "distill: taken from" in last.stdout
    for name in STAGES:
        assert digest_of_file(tmp_path / "killed" / name / MODEL) == digest_of_file(tmp_path / "whole" / name / MODEL)
    # What a user reads at the end, and where it is kept.
    assert "04_quantize" in last.stdout
    assert "the file to deploy" in (tmp_path / "killed" / "compress.log").read_text()


def test_a_multirun_gives_each_job_a_folder_and_compares_them(tmp_path: Path, tiny_npz: Path) -> None:
    """The second job cannot be: the third runs all the same, and page and last line say so."""
    done = subprocess.run(
        command(
            "--multirun", *tiny(tiny_npz), "stages=[teacher]", "teacher.lr=0.01,99,0.1", f"hydra.sweep.dir={tmp_path}"
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert_refused(done, "1 of 3 jobs that did not finish (1)", f"hydra.sweep.dir={tmp_path}")
    digests = {digest_of_file(tmp_path / job / "01_teacher" / MODEL) for job in ("0", "2")}
    assert len(digests) == 2
    assert None not in digests
    page = (tmp_path / "report.html").read_text()
    for part in ('href="0/report.html"', 'href="2/report.html"', "teacher.lr", "received teacher.lr=99"):
        assert part in page


def test_a_multirun_without_a_folder_makes_one(tmp_path: Path) -> None:
    """Hydra asks for it before it has set up what `${hydra:...}` reads."""
    done = subprocess.run(
        command("--multirun", "recipe=mobilenet_int8", "seed=-1"),
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    (folder,) = (tmp_path / "outputs" / "mobilenet_int8").glob("sweep_*")
    assert_refused(done, "1 of 1 jobs that did not finish (0)", f"hydra.sweep.dir=outputs/mobilenet_int8/{folder.name}")


def test_help_shows_recipes_and_keys() -> None:
    done = subprocess.run(command("--help"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "mobilenet_int8_ptq" in done.stdout
    assert "prune.ratio=0.5" in done.stdout
