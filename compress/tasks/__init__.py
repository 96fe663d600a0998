"""What a network's outputs mean: losses, figures and predictions, by the name that `Data` and model.json carry."""

from compress.tasks.base import Task
from compress.tasks.classification import Classification
from compress.tasks.multilabel import Multilabel

__all__ = ["CLASSIFICATION", "TASKS", "Task"]

CLASSIFICATION = Classification()
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, Multilabel())}
