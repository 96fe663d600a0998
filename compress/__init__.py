"""Compresses a trained image classifier into an int8 file that runs fast where it is deployed."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from compress.api import Result
    from compress.predict import Classifier

__version__ = version("compress")


def run(recipe: str, **settings: "Any") -> "Result":
    """Runs a recipe on a network and images in memory: `run("mobilenet_int8", model=, data=, overrides=, folder=)`.

    `compress.api.run` has the details.
    """
    from compress.api import run

    return run(recipe, **settings)


def load(run: "str | Path") -> "Classifier":
    """The classifier of a run's int8 file, or of the stage whose folder is given; `compress.predict` has the details.

    Imports ONNX Runtime here and not with the package, which the command line starts with.
    """
    from compress.predict import load

    return load(run)
