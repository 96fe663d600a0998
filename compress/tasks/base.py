"""The interface of a task, by which stages, the training loop and the evaluation handle targets."""

from typing import Any, Protocol

from torch import Tensor

from compress.export.file_outputs import FileOutputs
from compress.utils.metric import Metric

Figures = dict[str, Any]  # for metrics.json; a `Unavailable` where a figure could not be measured
Outcome = tuple[Tensor, Tensor]  # the outputs of a file on a split, and the targets
Predictions = dict[str, Tensor]  # for predictions.safetensors: the targets, and the predictions of each file


class Task(Protocol):
    """The meaning of a network's outputs, (N, K) or (N, A, 9 + K + 1), and of targets (N, ...)."""

    name: str
    metric: Metric
    files: FileOutputs  # of every exported file
    output_dims: int  # the number of dimensions of the network's outputs

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the training loss, a mean over the images, in nats."""
        ...

    def balanced(self, targets: Tensor, classes: int) -> "Task":
        """Returns the task with a training loss in which rare classes count as much as frequent ones of `targets`."""
        ...

    def weighted(self, weights: Tensor) -> "Task":
        """Returns the task with a training loss in which the classes count `weights` (K,) times."""
        ...

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each image (N,), without smoothing."""
        ...

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns the divergence of each image's prediction from that of `reference`, (N,), in nats."""
        ...

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of each image's decisions that is wrong, (N,), from 0 to 1."""
        ...

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the metric of a whole split, in percent."""
        ...

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """Returns the metric of `logits` minus that of `reference`, in percentage points, with the 95 % interval."""
        ...

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """Returns targets for images that have none, from the teacher's outputs."""
        ...

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """Returns the content of predictions.safetensors, from the torch network's logits and those of each file."""
        ...

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the accuracies of the torch network and of its file, with the 95 % intervals."""
        ...

    def screening(self, val: Outcome, test: Outcome, specificity: float | None) -> Figures:
        """Returns how sure the file is against how often it is right, before and after a temperature from `val`.

        With `specificity`, a share, also the sensitivity of each class at the threshold at which `val` has it. The
        threshold is on the probability at that temperature, which `compress.predict` returns.
        """
        ...

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the accuracies of the file of a further target, and its agreement with the torch network."""
        ...

    def compare(self, student: Predictions, teacher: Predictions | None) -> Figures:
        """Compares a file with the teacher's file on the same images; `teacher` is None for the teacher itself."""
        ...
