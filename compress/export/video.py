"""Runs a detector's file on the frames of a video or a camera, and times it. Needs OpenCV, the extra `video`."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from compress.export.draw_boxes import draw_boxes
from compress.export.predict import MIN_SCORE, Detection, Detector, read, require_score
from compress.utils.errors import UserError
from compress.utils.signals import deferred_signals

_CODEC = "mp4v"  # MPEG-4, which OpenCV's packages can write
_USUAL_RATE = 25.0  # frames a second, for a camera that does not say its own


@dataclass
class FrameTimes:
    """How many frames were predicted, and the seconds that this took, as a whole and for two parts."""

    frames: int = 0
    total_s: float = 0.0
    network_s: float = 0.0
    boxes_s: float = 0.0  # to select the boxes by scores and overlaps
    drawn: bool = False

    def __str__(self) -> str:
        if not self.frames:
            return "0 frames"
        rest_s = self.total_s - self.network_s - self.boxes_s
        network_ms, boxes_ms, rest_ms = (1000 * part / self.frames for part in (self.network_s, self.boxes_s, rest_s))
        rest = "reading and drawing" if self.drawn else "reading"
        return (
            f"{self.frames} frames, {self.frames / self.total_s:.1f} a second: network {network_ms:.1f} ms, "
            f"boxes {boxes_ms:.1f} ms, {rest} {rest_ms:.1f} ms a frame"
        )


class _Drawings:
    """An .mp4 of drawn frames, which is opened when the size of the first is known."""

    def __init__(self, path: Path, rate: float):
        self._path, self._rate, self._cv2 = path, rate, _opencv()
        self._file: Any = None

    def write(self, pixels: np.ndarray) -> None:
        """Appends a frame (H, W, 3) in RGB. Raises UserError where the file cannot be written."""
        if self._file is None:
            height, width, _ = pixels.shape
            codec = self._cv2.VideoWriter.fourcc(*_CODEC)
            self._file = self._cv2.VideoWriter(str(self._path), codec, self._rate, (width, height))
            if not self._file.isOpened():
                raise UserError(f"{self._path} to draw to", "a file that can be written", "name another folder")
        self._file.write(self._cv2.cvtColor(pixels, self._cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Writes the end of the file, without which no player reads it."""
        if self._file is not None:
            self._file.release()


def predict_video(
    detector: Detector, source: str, min_score: float = MIN_SCORE, path: Path | None = None
) -> FrameTimes:
    """Finds objects in each frame of a video file, or of the camera with the number `source`; returns the times.

    It ends with the video, or at Ctrl+C after a whole frame. Frames with their boxes are written to `path`, an .mp4.
    Raises UserError for a source that has no frames, a file that cannot be written, and where OpenCV is missing.
    """
    require_score(min_score)
    times = FrameTimes(drawn=path is not None)
    with (
        suppress(KeyboardInterrupt),  # the usual end of a camera's frames
        deferred_signals() as received,
        _opened(source) as video,
        _drawings(path, video) as drawings,
    ):
        start = perf_counter()
        while not received and (pixels := _next_frame(video)) is not None:
            found = _detect(detector, pixels, min_score, times)
            if drawings is not None:
                drawings.write(_drawn(pixels, found, detector))
            times.frames += 1
            times.total_s = perf_counter() - start
        if not received and not times.frames:
            raise UserError(f"{source} without a frame", "a video that can be decoded", "convert it, or name another")
    return times


def video_path(source: str, folder: Path) -> Path:
    """Returns the file in `folder` for the drawn frames of `source`. Raises UserError where that is `source` itself."""
    path = folder / (f"camera_{source}.mp4" if source.isdigit() else f"{Path(source).stem}.mp4")
    if path.resolve() == Path(source).resolve():
        raise UserError(f"{path} to draw to, the video itself", "another folder", "name one without the video")
    return path


@contextmanager
def _opened(source: str) -> Iterator[Any]:
    """Yields OpenCV's reader of a video file or a camera."""
    video = _opencv().VideoCapture(int(source) if source.isdigit() else source)
    try:
        if not video.isOpened():
            raise UserError(
                f"{source}, which cannot be opened",
                "a video file or the number of a camera",
                "name a file that plays, or a camera that is attached, as 0",
            )
        yield video
    finally:
        video.release()


def _drawings(path: Path | None, video: Any) -> Any:
    """Returns a context with an .mp4 at the video's rate, or with None where nothing is drawn."""
    if path is None:
        return nullcontext()
    return closing(_Drawings(path, video.get(_opencv().CAP_PROP_FPS) or _USUAL_RATE))


def _next_frame(video: Any) -> np.ndarray | None:
    """Returns the next frame (H, W, 3) in RGB, which OpenCV decodes as BGR; None after the last."""
    found, pixels = video.read()
    return _opencv().cvtColor(pixels, _opencv().COLOR_BGR2RGB) if found else None


def _detect(detector: Detector, pixels: np.ndarray, min_score: float, times: FrameTimes) -> list[Detection]:
    """Returns the objects in a frame, and adds what the network and the selection of boxes took to `times`."""
    prepared, size = read(pixels, detector.input, "a frame")
    start = perf_counter()
    (boxes,), (scores,) = detector.outputs(prepared[None])
    ran = perf_counter()
    found = detector.detections(boxes, scores, size, min_score)
    times.network_s += ran - start
    times.boxes_s += perf_counter() - ran
    return found


def _drawn(pixels: np.ndarray, found: list[Detection], detector: Detector) -> np.ndarray:
    picture = Image.fromarray(pixels)
    draw_boxes(picture, found, detector.classes)
    return np.asarray(picture)


def _opencv() -> ModuleType:
    """Returns OpenCV, imported here since only videos need it. Raises UserError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "a video without the package cv2", "the extra video installed", 'pip install "compress[video]"'
        ) from error
    return cv2
