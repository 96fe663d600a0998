"""The interface of a task: all that a stage, the training loop and the evaluation have to know of targets."""

from typing import Any, Protocol

from torch import Tensor

from compress.utils.metric import Metric

Figures = dict[str, Any]  # of metrics.json; `Unavailable` where a figure could not be taken
Predictions = dict[str, Tensor]  # of predictions.safetensors: the targets, and what each file says


class Task(Protocol):
    """What outputs (N, K) and targets (N, ...) mean."""

    name: str
    metric: Metric

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The training loss, a mean over the images, in nats."""
        ...

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image (N,), without smoothing."""
        ...

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """The divergence of each image's prediction from that of `reference`, (N,), in nats."""
        ...

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The share of each image's decisions that is wrong, (N,), from 0 to 1."""
        ...

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """The metric of a whole split."""
        ...

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """By how many points `logits` are ahead of `reference` on the same images, with the 95 % interval."""
        ...

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """Targets for images that have none, from the teacher's outputs."""
        ...

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """What predictions.safetensors holds: `logits` are the torch network's, `deployed` those of each file."""
        ...

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """The accuracies of metrics.json: of the torch network and of its file, with the 95 % intervals."""
        ...

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """The accuracies of the file of a further target, and its agreement with the torch network."""
        ...

    def compare(self, found: Predictions, teacher: Predictions | None) -> Figures:
        """File against the teacher's file on the same images; `teacher` is None for the teacher itself."""
        ...
