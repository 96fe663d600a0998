"""The tasks by name: each defines the losses, metrics and predictions for a network's outputs."""

from compress.tasks.base import Task
from compress.tasks.classification import Classification
from compress.tasks.detection import Detection
from compress.tasks.multilabel import Multilabel

__all__ = ["CLASSIFICATION", "TASKS", "Task"]

CLASSIFICATION = Classification()
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, Multilabel(), Detection())}
