"""SIGKILL at random moments: whatever was half done, the run ends with the digests of one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]  # tests/launch kills a run in its stages

KILLS = 60


def test_killed_runs_end_like_one_that_was_not(tmp_path: Path, tiny_npz: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.faults.killing", tiny_npz, tmp_path, str(KILLS), str(KILLS)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == KILLS
    assert len(found["whole"]) == 8
    assert None not in found["whole"].values()
    for ended in found["ended"]:
        assert ended == found["whole"]
