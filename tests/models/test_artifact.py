"""Files that pass between stages: whole or not there, exact, and never a pickle."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.models.artifact import Artifact, Spec, read_model, write_model
from compress.utils import files


def small() -> Artifact:
    torch.manual_seed(0)
    spec = Spec({"model": "x"}, ["a", "b"], {"shape": [1, 2, 2], "range": [0, 1], "mean": [0.5], "std": [0.5]})
    return Artifact(nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)), spec)


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    artifact = small()
    write_model(artifact, tmp_path)
    spec, tensors = read_model(tmp_path)
    assert spec == artifact.spec
    assert tensors.keys() == artifact.network.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in artifact.network.state_dict().items())


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(small(), tmp_path / name)
    assert files.digests(tmp_path / "a") == files.digests(tmp_path / "b")


def finished(folder: Path) -> Path:
    write_model(small(), folder)
    files.finish_stage(folder, {"key": "k"})
    return folder


def test_a_finished_stage_is_recognised(tmp_path: Path) -> None:
    record = files.finished_stage(finished(tmp_path), "k")
    assert record["key"] == "k"
    assert set(record["files"]) == {files.MODEL, files.SPEC, files.OUTPUTS}


def test_another_key_is_another_stage(tmp_path: Path) -> None:
    assert files.finished_stage(finished(tmp_path), "other") is None


def test_a_folder_without_stage_json_is_not_whole(tmp_path: Path) -> None:
    (finished(tmp_path) / files.STAGE).unlink()
    assert files.finished_stage(tmp_path, "k") is None


@pytest.mark.parametrize("name", [files.MODEL, files.SPEC])
def test_one_flipped_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert files.finished_stage(tmp_path, "k") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
def test_a_broken_stage_json_is_not_whole(tmp_path: Path, content: bytes) -> None:
    (finished(tmp_path) / files.STAGE).write_bytes(content)
    assert files.finished_stage(tmp_path, "k") is None


def test_a_missing_or_added_file_is_noticed(tmp_path: Path) -> None:
    (finished(tmp_path) / "stranger").write_text("x")
    assert files.finished_stage(tmp_path, "k") is None
    (tmp_path / "stranger").unlink()
    (tmp_path / files.SPEC).unlink()
    assert files.finished_stage(tmp_path, "k") is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_fresh_folder_is_empty(tmp_path: Path) -> None:
    files.fresh_folder(finished(tmp_path / "stage") if (tmp_path / "stage").mkdir() is None else tmp_path)
    assert list((tmp_path / "stage").iterdir()) == []
