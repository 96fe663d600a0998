"""Compresses a trained image classifier into an int8 file that runs fast where it is deployed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from compress.predict import Classifier

__version__ = "0.1.0"


def load(run: "str | Path") -> "Classifier":
    """The classifier of a run's int8 file, or of the stage whose folder is given; `compress.predict` has the details.

    Imports ONNX Runtime here and not with the package, which the command line starts with.
    """
    from compress.predict import load

    return load(run)
