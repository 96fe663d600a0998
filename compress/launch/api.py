"""The pipeline in Python, for notebooks: `compress.run` on a network and on images that are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from compress.config.compose import compose_recipe
from compress.config.schema import Config
from compress.data.builtin import ARRAYS
from compress.data.in_memory import in_memory_arrays
from compress.data.targets import TARGETS
from compress.export.predict import Classifier, load
from compress.models.user_model import USER_MODELS, add_own
from compress.pipeline.experiment import run_experiment
from compress.utils.errors import UserError
from compress.utils.files import ONNX, read_json

_DATA = "own"  # among the data sets, while `run` is at work


@dataclass
class Result:
    """What a run left."""

    folder: Path
    summary: dict[str, Any]  # summary.json: a row a stage, each against the teacher
    classifier: Classifier

    @property
    def path(self) -> Path:
        """The file to deploy."""
        return self.folder / self.summary["stages"][-1]["stage"] / ONNX

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[dict[str, float]]:
        """Of each image, a file, an array (H, W[, C]) or a Pillow image: every class with its probability."""
        return self.classifier.predict(images)


def run(
    recipe: str,
    model: nn.Module | None = None,
    data: Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
) -> Result:
    """Runs `recipe` with `overrides`, as the command line does, and returns what it left in `folder`.

    `model` is the trained teacher: it is taken as it is unless an override gives `teacher.epochs`, and stays
    unchanged. `data` is (train, val, test), see `in_memory_arrays`; the network gets images normalised by `data.mean`
    and `data.std`, those of train where they are not given. Where `folder` has a run of these settings, finished stages
    are taken. Raises UserError for a mistake in any of them.
    """
    with _config(recipe, model, data, list(overrides)) as config:
        if config.preflight:
            raise UserError("preflight=true", "a run", "leave it out: python -m compress preflight=true tells of files")
        place = Path(folder) if folder else Path("outputs", Path(recipe).stem, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        place.mkdir(parents=True, exist_ok=True)
        run_experiment(config, place)
    return Result(place, read_json(place / "summary.json"), load(place))


@contextmanager
def _config(recipe: str, model: nn.Module | None, data: Sequence[Any] | None, overrides: list[str]) -> Iterator[Config]:
    """The config, with `model` and `data` known to the pipeline until the context ends."""
    own = []
    if model is not None:
        name = add_own(model)
        own += [f"teacher.factory='{name}'", "teacher.epochs=0"]
    else:
        name = None
    try:
        if data is not None:
            arrays, classes = in_memory_arrays(data, _asked_size(overrides), _asked_task(overrides))
            ARRAYS[_DATA] = lambda config: (arrays, classes)
            own.append(f"data.image_size={min(arrays['train'][0].shape[1:3])}")
        config = compose_recipe(recipe, own + overrides)
        if data is not None:
            config.data.name = _DATA
        yield config
    finally:
        USER_MODELS.pop(name, None)
        ARRAYS.pop(_DATA, None)


def _asked_task(overrides: list[str]) -> str:
    asked = [text.partition("=")[2] for text in overrides if text.startswith("data.task=")]
    return asked[-1] if asked and asked[-1] in TARGETS else "classification"


def _asked_size(overrides: list[str]) -> int | None:
    sizes = [text.partition("=")[2] for text in overrides if text.startswith("data.image_size=")]
    return int(sizes[-1]) if sizes and sizes[-1].isdigit() else None
