"""Where a study is kept: a file or a real PostgreSQL, with several processes on it; passwords are told to nobody."""

import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from compress.config.schema import SearchConfig
from compress.launch.search import trials as trials_module
from compress.launch.search.storage import open_storage, storage_url
from compress.launch.search.trials import COMPLETE
from compress.utils.errors import UserError
from compress.utils.file_lock import this_process
from compress.utils.files import read_json
from tests.launch.search.fake import DATABASES, FakeRuns, fake_search, fake_trials

ROOT = Path(__file__).resolve().parents[3]
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of a server of our own, which listens on a socket in a temporary folder alone."""
    server = shutil.which("postgres") or (str(SERVERS[-1]) if SERVERS else None)
    if server is None:
        pytest.skip("there is no PostgreSQL server here (Debian's package: postgresql)")
    binaries = Path(server).resolve().parent
    user = pwd.getpwnam("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
    as_user = {"user": user.pw_uid, "group": user.pw_gid} if user else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path is short, and open to that user
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    initialise = [binaries / "initdb", "-D", folder / "data", "-U", "search", "-A", "trust", "--no-sync"]
    subprocess.run(initialise, check=True, capture_output=True, cwd=folder, **as_user)
    command = [server, "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
    try:
        _wait_for(folder, process)
        yield f"postgresql://search@/postgres?host={folder}"
    finally:
        process.send_signal(2)  # PostgreSQL's fast way to shut down
        process.wait(30)
        shutil.rmtree(folder)


def _exists(user: str) -> bool:
    return user in {entry.pw_name for entry in pwd.getpwall()}


def _wait_for(folder: Path, process: subprocess.Popen) -> None:
    while "ready to accept connections" not in (folder / "log").read_text():
        if process.poll() is not None:
            pytest.fail((folder / "log").read_text())
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    url = request.getfixturevalue("postgresql")
    yield url
    DATABASES.close()
    engine = sqlalchemy.create_engine(storage_url(url, tmp_path))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()


def test_two_processes_share_a_study(tmp_path: Path, storage: str) -> None:
    """Both make the tables at the same moment, and neither runs what the other one runs."""
    command = [sys.executable, "-m", "tests.launch.search.racer", str(tmp_path), storage, "12"]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    ran = [folder for text in said for folder in json.loads(text.splitlines()[-1])]
    trials = fake_trials(tmp_path, SearchConfig(storage=storage)).all()
    assert sorted(ran) == sorted(trial.folder for trial in trials)
    assert len(set(ran)) == len(ran) == 12
    assert len({str(trial.settings) for trial in trials}) == 12
    assert read_json(tmp_path / "pareto.json")["trials"]["complete"] == 12


def test_a_silent_machine_is_told_by_the_databases_clock(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchConfig(storage=storage)
    with monkeypatch.context() as patch:
        patch.setattr(trials_module, "this_process", lambda: this_process() | {"host": "elsewhere"})
        lost, living = (fake_trials(tmp_path, settings).ask(8) for _ in range(2))
    trials = fake_trials(tmp_path, settings)
    an_hour = "datetime(heartbeat, '-1 hour')" if "sqlite" in storage else "heartbeat - interval '1 hour'"
    with trials._storage.engine.begin() as connection:
        first = trials._trial_id(lost.number)
        connection.execute(
            sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = {an_hour} WHERE trial_id = {first}")
        )
    runs = FakeRuns()
    found = fake_search(tmp_path, runs, trials=4, storage=storage).all()
    settings_run = [job.trial.settings for job in runs.jobs]
    assert settings_run[0] == lost.settings
    assert living.settings not in settings_run
    assert len(found) == 4
    assert [trial.state for trial in found].count(COMPLETE) == 3


def test_a_password_is_told_to_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    with caplog.at_level(logging.WARNING):
        url = storage_url(f"postgres://me:opensesame@/none?host={tmp_path}", tmp_path)
    assert "PGPASSWORD" in caplog.text
    with pytest.raises(UserError, match="expected a database that can be reached") as refusal:
        DATABASES.enter_context(open_storage(url))
    for text in (str(refusal.value), caplog.text, str(url)):
        assert "opensesame" not in text


@pytest.mark.parametrize("storage", ["study.db", "///", "nosuch://here/db"])
def test_what_is_no_database_is_refused(tmp_path: Path, storage: str) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage"):
        DATABASES.enter_context(open_storage(storage_url(storage, tmp_path)))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database at all, but long enough to be looked at " * 9)
    with pytest.raises(UserError, match=r"study\.db.*expected a database that can be reached"):
        DATABASES.enter_context(open_storage(storage_url(None, tmp_path)))
