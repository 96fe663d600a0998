"""`python -m compress predict`: classifies images with a run's file."""

import argparse
import sys

from compress.export.predict import load
from compress.utils.errors import UserError

SHOWN = 3  # classes printed for an image


def main(arguments: list[str] | None = None) -> int:
    """Runs `arguments`, which default to those of the process; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m compress predict", description="Classify images with a run's file."
    )
    parser.add_argument("run", help="the folder of a run, or of one of its stages")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    options = parser.parse_args(arguments)
    try:
        classifier = load(options.run)
        predictions = classifier.predict(options.images)
    except UserError as error:
        print(f"compress: {error}", file=sys.stderr)
        return 2
    print(f"with {classifier.path}")
    width = max(map(len, options.images))
    for image, prediction in zip(options.images, predictions, strict=True):
        best = list(prediction.items())[:SHOWN]
        print(f"{image:<{width}}  " + "   ".join(f"{name} {100 * share:.2f} %" for name, share in best))
    return 0


if __name__ == "__main__":
    sys.exit(main())
