"""Sweeps on each launcher: a job that fails stops no other, one that is killed goes on, a signal lets jobs save."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from compress.config.compose import register
from compress.config.paths import CONF
from compress.launch.launchers import EXTRAS, register_launchers, require_one_kind_of_processes, to_launcher_error
from compress.launch.slurm import requeue_on_timeout
from compress.launch.sweep import SweepCallback, SweepState, sweep_state
from compress.utils.cores import cores
from compress.utils.errors import Interrupted, UserError
from compress.utils.files import METRICS, MODEL, STAGE, STATUS, digest_of_file, read_json, training_file, write_json
from compress.utils.signals import deferred_signals, handle_signals, stop_on_file
from tests.launch.test_command import ROOT, assert_refused, command, tiny

PACKAGES = {"joblib": "joblib", "ray": "ray", "submitit_local": "submitit", "submitit_slurm": "submitit"}


def needs(launcher: str) -> pytest.MarkDecorator:
    plugin = f"hydra_plugins.hydra_{PACKAGES[launcher]}_launcher"
    missing = find_spec("hydra_plugins") is None or find_spec(plugin) is None
    return pytest.mark.skipif(missing, reason=f"without the extra {EXTRAS[launcher]}")


def sweep(folder: Path, launcher: str, *arguments: str) -> list[str]:
    """A command line; what it is killed with reaches all its processes, or the first one alone."""
    return command("--multirun", f"hydra/launcher={launcher}", *arguments, f"hydra.sweep.dir={folder}")


def finish(line: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*/compress.log")))


def start_until(sign: str, times: int, line: list[str], folder: Path) -> subprocess.Popen:
    """A sweep, in a session of its own, whose jobs have written `sign` so many times."""
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while logs(folder).count(sign) < times:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return process


def wait_until_gone(group: int) -> None:
    """joblib's trackers end a moment after their process."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"processes of {group} are left")


@pytest.mark.e2e
@needs("joblib")
def test_a_joblib_sweep_that_was_killed_goes_on(tmp_path: Path, tiny_npz: Path) -> None:
    """Its workers end with it. Three jobs share a teacher, the second one cannot be."""
    folder, cache = tmp_path / "sweep", tmp_path / "cache"
    arguments = [
        *tiny(tiny_npz), "threads=0", "stages=[teacher,prune]", "prune.lr=0.01,99,0.02",
        "cache.enabled=true", f"cache.dir={cache}",
    ]  # fmt: skip
    with start_until("prune: starts", 1, sweep(folder, "joblib", *arguments), folder) as process:
        process.kill()
        process.wait()
        wait_until_gone(process.pid)
    (teacher,) = {digest_of_file(path) for path in folder.glob(f"*/01_teacher/{MODEL}")}
    done = finish(sweep(folder, "joblib", *arguments))

    assert_refused(done, "1 of 3 jobs that did not finish (1)", f"hydra.sweep.dir={folder}")
    assert "received prune.lr=99.0" in (folder / "report.md").read_text()
    assert "received prune.lr=99.0" in done.stdout
    assert [read_json(folder / job / STATUS)["state"] for job in "012"] == ["finished", "failed", "finished"]
    assert len(re.findall("teacher: starts", logs(folder))) == 1
    threads = max(1, cores() // 2)
    for job in "02":
        assert read_json(folder / job / "02_prune" / METRICS)["environment"]["threads"] == threads
        assert digest_of_file(folder / job / "01_teacher" / MODEL) == teacher


@pytest.mark.e2e
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("ray", marks=[needs("ray"), pytest.mark.long]),  # its servers take half a minute to start
        pytest.param("submitit_local", marks=needs("submitit_local")),
    ],
)
def test_a_job_that_fails_stops_no_other(tmp_path: Path, tiny_npz: Path, launcher: str) -> None:
    done = finish(sweep(tmp_path, launcher, *tiny(tiny_npz), "threads=0", "stages=[teacher]", "teacher.lr=99,0.02"))
    assert_refused(done, "1 of 2 jobs that did not finish (0)", f"hydra.sweep.dir={tmp_path}")
    assert "received teacher.lr=99.0" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "1" / "01_teacher" / STAGE).is_file()
    assert read_json(tmp_path / "1" / "01_teacher" / METRICS)["environment"]["threads"] == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=needs(name)) for name in PACKAGES if name != "submitit_slurm")]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_sweep_and_leaves_each_job_its_state(
    tmp_path: Path, tiny_npz: Path, launcher: str, number: int
) -> None:
    """SIGTERM to the command alone, SIGINT to all its processes, as a terminal does; one of joblib's has no job."""
    at_once = {"basic": 1}.get(launcher, 2)
    more = ["hydra.launcher.n_jobs=3"] if launcher == "joblib" else []
    line = sweep(
        tmp_path, launcher, *tiny(tiny_npz), "stages=[teacher]", "teacher.lr=0.02,0.05", "teacher.epochs=400", *more
    )
    with start_until("teacher: epoch 2 ", at_once, line, tmp_path) as process:
        (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
        errors = process.stderr.read()
    assert process.returncode == 128 + number, errors
    assert errors.splitlines()[-1].startswith(f"compress: received {signal.Signals(number).name}")
    assert errors.splitlines()[-1].endswith(f"; to go on: the same command with hydra.sweep.dir={tmp_path}")
    for job in range(at_once):
        assert training_file(tmp_path / str(job) / "01_teacher").is_file()
        assert "its state is saved" in read_json(tmp_path / str(job) / STATUS)["error"]
    assert "its state is saved" in (tmp_path / "report.md").read_text()
    wait_until_gone(process.pid)


@pytest.fixture
def options() -> Iterator[None]:
    """The launchers' options, as the command makes them known to Hydra."""
    Plugins.instance()
    kept = dict(ConfigStore.instance().repo["hydra"]["launcher"])
    register()
    register_launchers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield
    ConfigStore.instance().repo["hydra"]["launcher"] = kept


def launcher_node(name: str) -> DictConfig:
    overrides = ["recipe=mobilenet_int8", f"hydra/launcher={name}"]
    return compose("config", overrides, return_hydra_config=True).hydra.launcher


@pytest.mark.parametrize(
    ("name", "own", "of_its_package"),
    [
        pytest.param("joblib", {"n_jobs": 2, "batch_size": "1"}, {"pre_dispatch": "2*n_jobs"}, marks=needs("joblib")),
        pytest.param(
            "submitit_slurm",
            {"cpus_per_task": 4, "max_num_timeout": 20},
            {"partition": None},
            marks=needs("submitit_slurm"),
        ),
        pytest.param("submitit_local", {"cpus_per_task": 1}, {"tasks_per_node": 1}, marks=needs("submitit_local")),
        pytest.param(
            "ray",
            {"ray": {"init": {"address": "local", "include_dashboard": False}, "remote": {"num_cpus": 1}}},
            {},
            marks=needs("ray"),
        ),
    ],
)
def test_ready_settings_lie_over_those_of_the_package(
    options: None, name: str, own: dict, of_its_package: dict
) -> None:
    node = launcher_node(name)
    assert {key: node[key] for key in own | of_its_package} == own | of_its_package


@pytest.mark.parametrize("name", EXTRAS)
def test_a_launcher_that_is_not_installed_names_its_extra(options: None, name: str) -> None:
    ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)
    with pytest.raises(MissingConfigException) as caught:
        launcher_node(name)
    assert str(to_launcher_error(caught.value, "")) == (
        f"received hydra/launcher={name}, which is not installed; expected its extra, {EXTRAS[name]}; "
        f'to mend it: pip install -e ".[{EXTRAS[name]}]"'
    )


def test_the_extras_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, extra in EXTRAS.items():
        assert re.search(rf'^{extra} = \["hydra-{PACKAGES[name]}-launcher', text, re.MULTILINE)
        assert (CONF / "launchers" / f"{name}.yaml").is_file()


def test_slurm_is_asked_for_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "where there is no srun" in str(to_launcher_error(RuntimeError(), "SlurmLauncher"))
    assert to_launcher_error(RuntimeError(), "LocalLauncher") is None


def test_the_folder_is_known_before_hydra_can_read_its_name(options: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    config = compose("config", ["recipe=mobilenet_int8", "hydra.job.name=x"], return_hydra_config=True)
    config.hydra.run.dir = "outputs/${hydra:job.name}"
    with sweep_state() as state:
        SweepCallback().on_run_start(config)
    assert state.resume_override() == "hydra.run.dir=outputs/x"


@pytest.fixture
def swept(tmp_path: Path) -> SweepState:
    """The state of a sweep with joblib that has begun; an earlier one has left job 7 there, which failed."""
    for name in "0127":
        (tmp_path / name).mkdir()
    write_json(tmp_path / "7" / STATUS, {"id": "old", "state": "failed", "error": "no", "exit": 1})
    state = SweepState("hydra.sweep.dir", tmp_path, "JoblibLauncher")
    state.statuses_before = state.statuses()
    return state


@pytest.mark.parametrize(
    ("jobs", "status", "missed"),
    [
        ([{"state": "finished"}, {"state": "finished"}], 0, ""),
        ([{"state": "finished"}, {"state": "failed", "exit": 2}], 2, "1 of 2 jobs that did not finish (1);"),
        (
            [{"state": "failed", "exit": 1}, {"state": "failed", "exit": 2}],
            1,
            "2 of 2 jobs that did not finish (0, 1)",
        ),
        ([{"state": "finished"}, {"state": "running"}], 1, "1 of 2 jobs that did not finish (1);"),
        ([{"state": "stopped", "exit": 143}], 1, "1 of 1 jobs that did not finish (0);"),
    ],
)
def test_a_sweep_ends_as_its_own_jobs_did(swept: SweepState, jobs: list[dict], status: int, missed: str) -> None:
    for number, job in enumerate(jobs):
        write_json(swept.folder / str(number) / STATUS, {"id": "new"} | job)
    found, line = swept.final_status()
    assert found == status
    assert missed in line


def test_a_launcher_that_gives_up_is_told_from_a_mistake(swept: SweepState) -> None:
    assert f"JoblibLauncher gave up: lost; to go on: the same command with hydra.sweep.dir={swept.folder}" in str(
        swept.explain_launcher_error(OSError("lost"))
    )
    mistake = UserError("a", "b", "c")
    assert swept.explain_launcher_error(mistake) is mistake


def test_a_job_is_interrupted_once_by_the_sign_of_its_sweep(tmp_path: Path) -> None:
    with stop_on_file(tmp_path / "stop"), deferred_signals() as received:
        (tmp_path / "stop").touch()
        deadline = time.monotonic() + 30
        while not received and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(2.5)  # in which it would look twice more
        assert received == [signal.SIGINT]
        received.clear()


def test_a_job_without_a_sign_is_left_alone(tmp_path: Path) -> None:
    threads = threading.active_count()
    with deferred_signals() as received, stop_on_file(tmp_path / "stop"):
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    assert received == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_outside_a_training_a_signal_ends_a_run_in_an_orderly_way(number: int) -> None:
    with (
        pytest.raises(Interrupted, match=f"received {signal.Signals(number).name}; what was finished or saved"),
        handle_signals(),
    ):
        signal.raise_signal(number)


def test_a_launcher_under_torchrun_is_refused() -> None:
    require_one_kind_of_processes(["hydra/launcher=joblib"], 1)
    require_one_kind_of_processes(["hydra/launcher=basic", "seed=1"], 2)
    with pytest.raises(UserError, match="joblib under torchrun, with 2 processes"):
        require_one_kind_of_processes(["--multirun", "hydra/launcher=joblib"], 2)


@pytest.fixture
def submitit() -> Iterator[None]:
    """Its handler of the signal that a job's time is up: it has queued the job again when it leaves."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}

    def leave(number: int, frame: object) -> None:
        sys.exit(144)

    signal.signal(signal.SIGUSR2, leave)
    yield
    assert signal.getsignal(signal.SIGUSR2) is leave
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_whose_time_is_up_is_queued_again_once_its_training_has_saved(submitit: None) -> None:
    def train() -> None:
        with handle_signals(), requeue_on_timeout(), deferred_signals() as received:
            signal.raise_signal(signal.SIGTERM)
            assert received == []
            signal.raise_signal(signal.SIGUSR2)
            assert received == [signal.SIGINT]
            raise Interrupted(received[0], " after its step; its state is saved")

    with pytest.raises(SystemExit, match="144"):
        train()


def test_a_job_that_is_stopped_before_its_time_is_not_queued_again(submitit: None) -> None:
    with pytest.raises(Interrupted), handle_signals(), requeue_on_timeout():
        signal.raise_signal(signal.SIGINT)
