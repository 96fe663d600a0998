"""Compresses a trained image classifier into an int8 file that runs fast where it is deployed."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from compress.export.predict import Classifier, Detector
    from compress.launch.api import Result

__version__ = version("compress")
# Makes each command a module of the package: `python -m compress.predict`, `python -m compress.cache`.
__path__.append(str(Path(__file__).parent / "launch" / "commands"))


def run(recipe: str, **settings: "Any") -> "Result":
    """Runs a recipe on a network and images in memory: `run("mobilenet_int8", model=, data=, overrides=, folder=)`.

    See `compress.launch.api.run` for the arguments.
    """
    from compress.launch.api import run

    return run(recipe, **settings)


def load(run: "str | Path") -> "Classifier | Detector":
    """Returns what predicts with a run's int8 file, or with a stage's file; `run` is the folder of either.

    It is a Classifier, or a Detector where the run's task is detection: see `compress.export.predict`. ONNX Runtime is
    imported here: the command line imports the package first, and need not wait for it.
    """
    from compress.export.predict import load

    return load(run)
