"""The loss of a network with exits: each exit learns from the network's end, and that from labels and the teacher."""

from collections.abc import Callable

from torch import Tensor, nn

from compress.data.dataset import Batch
from compress.methods.distillation.losses import TeacherFn, distillation
from compress.tasks import CLASSIFICATION, Task
from compress.training.step import LossFn


def ends_loss(teacher_fn: TeacherFn | None, temperature: float, alpha: float, task: Task = CLASSIFICATION) -> LossFn:
    """Returns the sum of the exits' losses, and of the end's where it learns from the logits of `teacher_fn`.

    Each is Hinton's mixture; exits have the end for their teacher (Phuong & Lampert 2019, "Distillation-Based Training
    for Multi-Exit Architectures"). The logits that the loss returns, by which training accuracy is counted, are those
    of the first exit.
    """

    def loss(network: nn.Module, examples: Batch) -> tuple[Tensor, Tensor]:
        *early, end = (logits.float() for logits in network(examples.images))
        pairs = [(logits, end.detach()) for logits in early]
        if teacher_fn is not None:
            pairs.append((end, teacher_fn(examples)))
        value = sum(distillation(own, wanted, examples.labels, temperature, alpha, task) for own, wanted in pairs)
        return value, early[0]

    return loss


def freeze(network: nn.Module) -> Callable[[int], None]:
    """Freezes a network; returns what keeps batch norm's statistics as they are, to be called before each epoch."""
    network.requires_grad_(False)
    return lambda epoch: network.eval()
