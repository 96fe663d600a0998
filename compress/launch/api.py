"""The pipeline in Python, for notebooks: `compress.run` on a network and on images that are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from compress.config.compose import compose_recipe
from compress.config.overrides import override_value
from compress.config.schema import Config
from compress.data.in_memory import in_memory_arrays, user_data
from compress.data.targets import TARGETS
from compress.export.predict import Classifier, Detection, Detector, load
from compress.models.user_model import user_model
from compress.pipeline.experiment import run_experiment
from compress.utils.errors import UserError
from compress.utils.files import ONNX, read_json


@dataclass
class Result:
    """The files of a finished run."""

    folder: Path
    summary: dict[str, Any]  # summary.json: a row for each stage, compared with the teacher
    predictor: Classifier | Detector

    @property
    def path(self) -> Path:
        """The file to deploy."""
        last: str = self.summary["stages"][-1]["stage"]
        return self.folder / last / ONNX

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[dict[str, float]] | list[list[Detection]]:
        """Returns every class with its probability, or the objects found, for each image.

        An image is a file, an array (H, W[, C]) or a Pillow image.
        """
        return self.predictor.predict(images)


def run(
    recipe: str,
    model: nn.Module | None = None,
    data: Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
) -> Result:
    """Runs `recipe` with `overrides`, as the command line does, and returns the run in `folder`.

    `model` is the trained teacher. It is not trained further unless an override sets `teacher.epochs`, and the object
    itself stays unchanged. `data` is (train, val, test), see `in_memory_arrays`. The network receives images normalised
    by `data.mean` and `data.std`; where these are not set, by the statistics of train. Finished stages in `folder` are
    reused if they have the same settings. Raises UserError for a mistake in any argument.
    """
    with _config(recipe, model, data, list(overrides)) as config:
        if config.preflight:
            raise UserError("preflight=true", "a run", "leave it out: python -m compress preflight=true tells of files")
        now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        run_dir = Path(folder) if folder else Path("outputs", Path(recipe).stem, now)
        run_dir.mkdir(parents=True, exist_ok=True)
        run_experiment(config, run_dir)
    return Result(run_dir, read_json(run_dir / "summary.json"), load(run_dir))


@contextmanager
def _config(recipe: str, model: nn.Module | None, data: Sequence[Any] | None, overrides: list[str]) -> Iterator[Config]:
    """Yields the config; `model` and `data` are registered under names in it until the context ends."""
    given: list[str] = []
    with ExitStack() as registered:
        if model is not None:
            name = registered.enter_context(user_model(model))
            given += [f"teacher.factory='{name}'", "teacher.epochs=0"]
        if data is not None:
            arrays, classes = in_memory_arrays(data, _image_size(overrides), _task(overrides))
            given.append(f"data.image_size={min(arrays['train'][0].shape[1:3])}")
        config = compose_recipe(recipe, given + overrides)
        if data is not None:
            config.data.name = registered.enter_context(user_data(arrays, classes))
        yield config


def _task(overrides: list[str]) -> str:
    task = override_value("data.task", overrides)
    return task if isinstance(task, str) and task in TARGETS else "classification"


def _image_size(overrides: list[str]) -> int | None:
    size = override_value("data.image_size", overrides)
    return size if isinstance(size, int) and not isinstance(size, bool) else None
