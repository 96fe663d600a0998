"""`python -m compress predict`: classifies images, or finds objects in images or a video, with a run's file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compress.export.draw_boxes import drawn_paths, make_folder, write_drawing
from compress.export.predict import MIN_SCORE, Classifier, Detection, Detector, load
from compress.export.video import predict_video, video_path
from compress.utils.errors import UserError

SHOWN = 3  # classes printed for an image


def main(arguments: list[str] | None = None) -> int:
    """Runs `arguments`, which default to those of the process; returns the exit status, 2 for a user's mistake."""
    options = _parse(arguments)
    try:
        _require_one_source(options)
        predictor = load(options.run)
        if isinstance(predictor, Detector):
            _detect(predictor, options)
        else:
            _classify(predictor, options)
    except UserError as error:
        print(f"compress: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m compress predict",
        description="Classify images, or find objects in images or a video, with a run's file.",
    )
    parser.add_argument("run", help="the folder of a run, or of one of its stages")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    boxes = parser.add_argument_group("for a run of data.task=detection")
    boxes.add_argument("--min-score", type=float, metavar="SCORE", help=f"of an object, from 0 to 1 ({MIN_SCORE})")
    boxes.add_argument("--draw", type=Path, metavar="FOLDER", help="write the images or the video with boxes there")
    boxes.add_argument("--video", metavar="SOURCE", help="a video file or a camera's number; Ctrl+C ends it")
    return parser.parse_args(arguments)


def _require_one_source(options: argparse.Namespace) -> None:
    """Raises UserError unless there are either images or a video."""
    if bool(options.images) == (options.video is not None):
        received = "both images and --video" if options.images else "no image"
        raise UserError(received, "image files, or a video", "predict RUN IMAGE..., or predict RUN --video SOURCE")


def _classify(classifier: Classifier, options: argparse.Namespace) -> None:
    """Prints the likeliest classes of each image. Raises UserError for an option that only boxes have."""
    for name in ("min_score", "draw", "video"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} with {classifier.path}, which finds no boxes",
                "the run of a detector",
                "leave it out, or name a run of data.task=detection",
            )
    predictions = classifier.predict(options.images)
    print(f"with {classifier.path}")
    width = max(map(len, options.images))
    for image, prediction in zip(options.images, predictions, strict=True):
        best = list(prediction.items())[:SHOWN]
        print(f"{image:<{width}}  " + "   ".join(f"{name} {100 * share:.2f} %" for name, share in best))


def _detect(detector: Detector, options: argparse.Namespace) -> None:
    """Prints the objects in each image, or the times of a video's frames, and draws them where that is asked for."""
    min_score = MIN_SCORE if options.min_score is None else options.min_score
    if options.video is not None:
        path = None if options.draw is None else video_path(options.video, make_folder(options.draw))
        times = predict_video(detector, options.video, min_score, path)
        print(f"with {detector.path}\n{times}")
        return
    # Named first, so that no mistake there comes after the network has run on all images.
    paths = None if options.draw is None else drawn_paths(options.images, make_folder(options.draw))
    found = detector.predict(options.images, min_score)
    print(f"with {detector.path}")
    _print_objects(options.images, found, min_score)
    if paths is not None:
        for path, image, objects in zip(paths, options.images, found, strict=True):
            write_drawing(image, path, objects, detector.classes)


def _print_objects(images: Sequence[str], found: Sequence[Sequence[Detection]], min_score: float) -> None:
    """Prints a line for each object: image, label, score and box in whole pixels."""
    width = max(map(len, images))
    label_width = max((len(one.label) for objects in found for one in objects), default=0)
    for image, objects in zip(images, found, strict=True):
        for one in objects:
            box = " ".join(f"{round(at):>5}" for at in one.box)
            print(f"{image:<{width}}  {one.label:<{label_width}}  {one.score:.2f} {box}")
        if not objects:
            print(f"{image:<{width}}  no object with a score of {min_score:g} or more")


if __name__ == "__main__":
    sys.exit(main())
