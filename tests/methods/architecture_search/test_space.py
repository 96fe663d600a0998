"""Sub-networks: their costs are known before they are built, and they are rebuilt from their record alone."""

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.evaluation.flops import count_cost
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.shared_weights import SharedWeights
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.restore import restore
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec, write_model
from compress.models.widths import read_widths
from compress.utils.errors import UserError
from tests.zoo.conftest import networks

SHAPE = (3, 32, 32)
NAMES = networks(["resnet20", "mobilenet_v3_small"])


@cache
def space_of(name: str) -> SearchSpace:
    """The space of a network whose batch norm is not that of a new one, with two smaller input sizes."""
    torch.manual_seed(0)
    network = build(Architecture(name, "small", 3, 10)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return SearchSpace(network, torch.zeros(1, *SHAPE), round_to=4, input_sizes=(24, 16))


def scores_of(space: SearchSpace) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(group.channels, generator=generator) for group in space.groups]


def drawn(space: SearchSpace, seed: int) -> Candidate:
    draw = random.Random(seed)
    return space.candidate(
        [draw.choice(group.widths) for group in space.groups],
        draw.sample(space.blocks, len(space.blocks) // 2),
        {name: draw.choice(sizes) for name, sizes in space.kernels.items()},
        draw.choice([None, 16, 24]),
    )


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_those_of_the_network_that_is_built(name: str) -> None:
    space = space_of(name)
    params, macs = count_cost(space.network, SHAPE)
    drawn_ones = [drawn(space, 0), replace(drawn(space, 0), input_size=24), replace(space.whole, input_size=16)]
    for candidate in (space.whole, space.smallest, *drawn_ones):
        network, _ = space.build(candidate, scores_of(space))
        widths = space.widths(candidate)
        assert (space.params().of(widths), space.macs(macs).of(widths)) == count_cost(network, SHAPE)
    assert count_cost(space.network, SHAPE) == (params, macs)  # building left it as it was


def test_what_can_change_in_a_network_with_large_kernels() -> None:
    space = space_of("mobilenet_v3_small")
    assert set(space.blocks) == {f"features.{at}" for at in (3, 5, 6, 8, 10, 11)}
    assert list(space.kernels.values()) == [[5, 3]] * 8
    assert all(width % 4 == 0 for group in space.groups for width in group.widths)


def test_what_makes_no_difference_makes_no_other_candidate() -> None:
    space = space_of("mobilenet_v3_small")
    block = next(name for name in space.blocks if any(layer.startswith(f"{name}.") for layer in space.kernels))
    kernel = next(layer for layer in space.kernels if layer.startswith(f"{block}."))
    narrow = [
        group.widths[0] if all(layer.startswith(f"{block}.") for layer in group.layers) else group.channels
        for group in space.groups
    ]
    assert any(count < group.channels for count, group in zip(narrow, space.groups, strict=True))
    assert space.candidate(narrow, [block], {kernel: 3}) == space.candidate(space.whole.left, [block])
    assert space.candidate(space.whole.left, [], {kernel: 5}) == space.whole


@pytest.mark.parametrize("size", [32, 40])
def test_an_input_that_is_not_smaller_is_refused(size: int) -> None:
    network = build(Architecture("resnet8", "small", 3, 10))
    with pytest.raises(UserError, match=rf"input_sizes with {size}, and images of 32 pixels"):
        SearchSpace(network, torch.zeros(1, *SHAPE), input_sizes=(size,))


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_is_read_back_from_its_record(name: str) -> None:
    space = space_of(name)
    candidate = drawn(space, 0)
    found = Candidate.from_record(json.loads(json.dumps(candidate.record())))
    assert found == candidate
    assert found.key == candidate.key != space.whole.key


@pytest.mark.parametrize("name", NAMES)
def test_a_sub_network_is_rebuilt_exactly_from_its_files(name: str, tmp_path: Path) -> None:
    space = space_of(name)
    candidate = drawn(space, 1)
    network, _ = space.build(candidate, scores_of(space))
    spec = Spec({"model": name, "stem": "small", "in_channels": 3, "classes": 10}, [str(at) for at in range(10)], {
        "shape": list(SHAPE), "range": [0, 1], "mean": [0.5] * 3, "std": [0.5] * 3, "layout": "NCHW"
    })  # fmt: skip
    widths = {name: width for name, width in read_widths(network).items() if width != space.prunable.before[name]}
    spec = spec.changed("search_architecture", widths=widths, **candidate.changes())
    if candidate.input_size:
        spec = spec.changed("resize_input", size=[candidate.input_size] * 2)
    write_model(Artifact(network, spec), tmp_path)
    rebuilt = restore(tmp_path, torch.device("cpu")).network  # its outputs are compared with those of `network`
    wanted = network.state_dict()
    assert rebuilt.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in rebuilt.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_shared_weights_compute_what_a_built_sub_network_does(name: str) -> None:
    space, images = space_of(name), torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    scores, candidate = scores_of(space), replace(drawn(space, 2), input_size=24)
    network, _ = space.build(candidate, scores)
    shared, before = SharedWeights(space, scores), {k: v.clone() for k, v in space.network.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(shared.run(candidate, images), network.eval()(images))
        assert not torch.equal(shared.run(candidate, images), space.network(images))
    space.network.train()
    shared.run(candidate, images).sum().backward()
    gradients = {name: value.grad for name, value in space.network.named_parameters() if value.grad is not None}
    assert not any(f".{name}".startswith(f".{block}.") for name in gradients for block in candidate.without)
    space.network.eval().zero_grad(set_to_none=True)
    assert all(torch.equal(value, before[key]) for key, value in space.network.state_dict().items())
