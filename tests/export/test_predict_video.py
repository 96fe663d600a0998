"""Finding objects in the frames of a video with a run's file: times, colours, drawings, and the end at Ctrl+C."""

import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.export.predict import Detection, Detector
from compress.export.video import predict_video
from compress.launch.commands.predict import main
from compress.utils.errors import UserError

cv2 = pytest.importorskip("cv2", reason="the extra video is not installed")

FRAMES, WIDTH, HEIGHT = 5, 160, 96
RED = (255, 0, 0)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Frames of plain red."""
    path = tmp_path_factory.mktemp("red") / "red.mp4"
    file = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (WIDTH, HEIGHT))
    for _ in range(FRAMES):
        file.write(np.full((HEIGHT, WIDTH, 3), RED[::-1], np.uint8))
    file.release()
    return str(path)


def frames_of(path: Path) -> list[np.ndarray]:
    """In RGB."""
    file, frames = cv2.VideoCapture(str(path)), []
    while (read := file.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    file.release()
    return frames


def recorded(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[list[Detection]]:
    """The objects of each frame from now on."""
    found, plain = [], detector.detections

    def noted(*arguments: Any) -> list[Detection]:
        found.append(plain(*arguments))
        return found[-1]

    monkeypatch.setattr(detector, "detections", noted)
    return found


def test_each_frame_is_predicted_in_its_colours(
    detector: Detector, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recorded(detector, monkeypatch)
    times = predict_video(detector, video, 0.6)
    assert times.frames == len(found) == FRAMES
    assert 0 < times.network_s + times.boxes_s < times.total_s
    for (one,) in found:
        assert one.label == "red"
        assert one.box == (40, 12, 120, 60)


def test_the_command_prints_times_and_writes_the_drawn_frames(
    run: Path, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "drawn"
    assert main([str(run), "--video", video, "--draw", str(folder), "--min-score", "0.6"]) == 0
    number = r"\d+\.\d"
    expected = (
        f"{FRAMES} frames, {number} a second: network {number} ms, boxes {number} ms, "
        f"reading and drawing {number} ms a frame"
    )
    assert re.fullmatch(expected, capsys.readouterr().out.splitlines()[-1])
    drawn = frames_of(folder / "red.mp4")
    assert len(drawn) == FRAMES
    for frame in drawn:
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame[80, 10] - np.array(RED)).max() < 30
        assert frame[5, 45:60, 1].max() > 120  # the tag above the box, in the yellow of the first class
        assert frame[80, :, 1].max() < 60


def test_without_a_folder_nothing_is_drawn(run: Path, video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--video", video]) == 0
    assert re.search(r"ms, reading \d", capsys.readouterr().out)


def test_ctrl_c_ends_it_after_a_whole_frame(
    run: Path, video: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Detector.outputs

    def interrupted(self: Detector, batch: np.ndarray) -> Any:
        interrupted.calls += 1
        if interrupted.calls == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(self, batch)

    interrupted.calls = 0
    monkeypatch.setattr(Detector, "outputs", interrupted)
    assert main([str(run), "--video", video, "--draw", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 frames, ")
    assert len(frames_of(tmp_path / "red.mp4")) == 2


def test_mistakes(run: Path, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for arguments, part in (
        (["--video", str(tmp_path / "absent.mp4")], "cannot be opened"),
        (["--video", str(text)], "cannot be opened"),
        (["--video", "99"], "the number of a camera"),
        (["--video", video, "--draw", str(Path(video).parent)], "the video itself"),
        (["--video", video, "--draw", video], "a folder that can be written"),
        (["--video", video, "--min-score", "-1"], "from 0 to 1"),
    ):
        assert main([str(run), *arguments]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("compress: received")
        assert part in line
    assert len(frames_of(Path(video))) == FRAMES


def test_the_extra_is_named_where_it_is_missing(
    detector: Detector, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=re.escape('pip install "compress[video]"')):
        predict_video(detector, video)
