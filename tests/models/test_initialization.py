"""First weights: no network of the zoo starts out sure of something wrong, and what is published stays as it is."""

import math

import pytest
import torch
from torch.nn import functional as F

from compress.models import Architecture, build
from compress.models.initialization import last_defined_layer
from tests.zoo.conftest import NAMES, networks


@pytest.mark.parametrize("name", networks(NAMES))
def test_the_first_loss_is_nearly_that_of_guessing(name: str) -> None:
    torch.manual_seed(0)
    network, labels = build(Architecture(name, "small", 1, 10)).train(), torch.arange(64) % 10
    with torch.no_grad():
        logits = network(torch.randn(64, 1, 16, 16))
    assert F.cross_entropy(logits, labels).item() < math.log(10) + 1


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 9), ("resnet34", 16), ("resnet50", 16)])
def test_residual_blocks_share_the_weight_of_one(name: str, blocks: int) -> None:
    network = build(Architecture(name, "small", 1, 10))
    last = "bn3" if name == "resnet50" else "bn2"
    norms = [module for path, module in network.named_modules() if path.endswith(f".{last}")]
    assert len(norms) == blocks
    assert torch.cat([norm.weight for norm in norms]).unique().tolist() == pytest.approx([1 / math.sqrt(blocks)])


@pytest.mark.parametrize(("classes", "drawn_anew"), [(10, True), (1000, False)])
def test_a_logits_layer_made_for_a_thousand_classes_is_drawn_anew_for_ten(classes: int, drawn_anew: bool) -> None:
    """EfficientNet draws it evenly from 1 / sqrt(classes) to both sides, torch from 1 / sqrt(inputs)."""
    _, last = last_defined_layer(build(Architecture("efficientnet_b0", "small", 3, classes)))
    inputs = 1280
    widest = 1 / math.sqrt(inputs if drawn_anew else classes)
    assert last.weight.abs().max().item() == pytest.approx(widest, rel=0.01)
