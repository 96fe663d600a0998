"""A context whose teacher is trained, for stages that run one by one."""

from collections.abc import Iterator
from pathlib import Path

import torch

from compress.config.schema import Config
from compress.data import load_data
from compress.stages.teacher import teacher
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter


def taught(config: Config, folder: Path) -> Iterator[Context]:
    """Yields a context on the CPU with the teacher of `config`; its curves go into `folder`."""
    with TensorBoardWriter(folder / "curves") as curves:
        context = Context(load_data(config.data, 0), None, config.train, torch.device("cpu"), 0, curves)
        torch.manual_seed(0)
        context.teacher = teacher(None, config.teacher, context)
        yield context
