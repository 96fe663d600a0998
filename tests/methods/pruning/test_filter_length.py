"""Filters of length 1: the network computes the same, and trains the same however long its filters were."""

import copy

import pytest
import torch
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.config.stage_settings import PruneConfig
from compress.data import load_data
from compress.methods.pruning.filter_length import set_unit_length
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec
from compress.stages.prune import prune
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter

SHAPE = (1, 32, 32)


def trained(name: str) -> nn.Module:
    """A network whose batch norm knows its inputs."""
    torch.manual_seed(1)
    network = build(Architecture(name, "small", SHAPE[0], 5))
    images = torch.randn(16, *SHAPE)
    with torch.no_grad():
        for _ in range(5):
            network(images)
    return network.eval()


def lengths(network: nn.Module, names: list[str]) -> torch.Tensor:
    return torch.cat([network.get_submodule(name).weight.flatten(1).norm(dim=1) for name in names])


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_computes_the_same(name: str, training: bool) -> None:
    network, images = trained(name), torch.randn(8, *SHAPE)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(network)
    names = set_unit_length(other, images[:1])
    assert names
    torch.testing.assert_close(lengths(other, names), torch.ones_like(lengths(other, names)))
    with torch.no_grad():
        wanted, found = network.train(training)(images), other.train(training)(images)
    # Batch norm's eps weighs more on outputs of little variance: 0.3 % of a logit in train mode.
    torch.testing.assert_close(found, wanted, rtol=1e-2 if training else 1e-4, atol=1e-2 if training else 1e-4)


def test_depthwise_filters_keep_their_length() -> None:
    network = trained("mobilenet_v2")
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    depthwise = {name for name, layer in convolutions.items() if layer.groups > 1}
    before = {name: layer.weight.detach().clone() for name, layer in convolutions.items()}
    assert set(set_unit_length(network, torch.randn(1, *SHAPE))) == set(convolutions) - depthwise
    assert {name for name, layer in convolutions.items() if torch.equal(layer.weight, before[name])} == depthwise


def test_dead_filters_layers_with_two_readers_and_those_without_batch_norm_stay_as_they_are() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alone, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.shared, self.other = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.plain, self.without_weight = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.shared(self.norm(self.alone(x)))
            return self.without_weight(self.plain(self.other(x) + x)).mean((2, 3))

    network = Branches().eval()
    with torch.no_grad():
        network.alone.weight[0] = 0
    before = copy.deepcopy(network.state_dict())
    assert set_unit_length(network, torch.randn(1, 1, 8, 8)) == ["alone"]
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"alone.weight", "alone.bias", "norm.running_var", "norm.weight"}
    assert network.alone.weight[0].eq(0).all()
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_teacher_with_longer_or_shorter_filters_becomes_the_same_student(tiny_config: Config, factor: float) -> None:
    """Two teachers that compute the same are pruned, refitted and fine-tuned to students that compute the same."""
    data = load_data(tiny_config.data, 0)
    torch.manual_seed(0)
    teacher = build(Architecture("resnet8", "small", 1, 3)).eval()
    with torch.no_grad():
        teacher.train()
        for images, _ in data.train.batches():
            teacher(images)
    scaled = copy.deepcopy(teacher.eval())
    with torch.no_grad():
        for block in (scaled.layer1[0], scaled.layer2[0], scaled.layer3[0]):
            for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                layer.weight.mul_(factor)
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)
                norm.weight.mul_(
                    (norm.running_var + norm.eps).sqrt() / (norm.running_var / factor**2 + norm.eps).sqrt()
                )
                norm.weight.div_(factor)

    def student(network: nn.Module) -> nn.Module:
        context = Context(data, None, TrainConfig(), torch.device("cpu"), 1, TensorBoardWriter(None))
        config = PruneConfig(ratio=0.5, round_to=1, reconstruction_samples=64, epochs=1, lr=0.05)
        return prune(Artifact(network, Spec({}, [], {})), config, context).network

    first, second = student(teacher), student(scaled)
    images = next(data.test.batches())[0]
    with torch.no_grad():
        torch.testing.assert_close(second(images), first(images), rtol=0.05, atol=0.05)
