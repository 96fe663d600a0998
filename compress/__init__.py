"""Compresses a trained image classifier into an int8 file that runs fast where it is deployed."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from compress.export.predict import Classifier
    from compress.launch.api import Result

__version__ = version("compress")
# Commands are modules of their own: `python -m compress.predict`, `python -m compress.cache`.
__path__.append(str(Path(__file__).parent / "launch" / "commands"))


def run(recipe: str, **settings: "Any") -> "Result":
    """Runs a recipe on a network and images in memory: `run("mobilenet_int8", model=, data=, overrides=, folder=)`.

    `compress.launch.api.run` has the details.
    """
    from compress.launch.api import run

    return run(recipe, **settings)


def load(run: "str | Path") -> "Classifier":
    """The classifier of a run's int8 file, or of the stage whose folder is given; see `compress.export.predict`.

    Imports ONNX Runtime here and not with the package, which the command line starts with.
    """
    from compress.export.predict import load

    return load(run)
