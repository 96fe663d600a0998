"""Sensitivity: a refit from stored values is that of the whole network, and curves have the group's own widths."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.methods.pruning import reconstruction
from compress.methods.pruning.reconstruction import Reference, reconstruct
from compress.methods.pruning.sensitivity import Sensitivity, measure_sensitivity
from compress.models import Architecture, build
from compress.tasks import TASKS
from tests.methods.pruning.networks import SHAPE
from tests.methods.pruning.test_channel_groups import BUILDS, prunable_of, random_left, random_scores
from tests.methods.pruning.test_pruning import LateShortcut

DISTANCE = TASKS["classification"].distance


class GreyLateShortcut(LateShortcut):
    """For images with three channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)


def timm_norms() -> nn.Module:
    """Batch norms with an activation, whose statistics the traced graph reads."""
    layers = pytest.importorskip("timm.layers", reason="the extra timm is not installed")
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        layers.BatchNormAct2d(8),
        nn.Conv2d(8, 12, 3, 2, bias=False),
        layers.BatchNormAct2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


REFITTED: dict[str, Callable[[], nn.Module]] = BUILDS | {
    "late": GreyLateShortcut,
    "timm_norms": timm_norms,
    "resnet8": lambda: build(Architecture("resnet8", "small", 3, 5)),
    "mobilenet_v3_small": lambda: build(Architecture("mobilenet_v3_small", "small", 3, 5)),
}


def images(count: int = 12) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def settled(build_network: Callable[[], nn.Module]) -> nn.Module:
    """A network whose batch norm knows its inputs."""
    network = build_network()
    with torch.no_grad():
        for _ in range(20):
            network.train()(images())
    return network.eval()


@pytest.mark.parametrize("build_network", REFITTED.values(), ids=REFITTED)
def test_refitted_outputs_are_those_of_a_refitted_network(
    build_network: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all groups shrink, and where one does, so that the nodes before it are not computed again."""
    monkeypatch.setattr(reconstruction, "_CHUNK", 5)
    prunable = prunable_of(lambda: settled(build_network))
    state = copy.deepcopy(prunable.network.state_dict())
    reference, scores = Reference(prunable.network, images()), random_scores(prunable)
    with torch.no_grad():
        torch.testing.assert_close(reference.outputs, prunable.network(images()), rtol=1e-4, atol=1e-5)
    whole = [group.channels for group in prunable.groups]
    tries = [random_left(prunable, 0), whole]
    tries += [
        [*whole[:at], prunable.groups[at].allowed(whole[at] / 2), *whole[at + 1 :]] for at in (0, -1 % len(whole))
    ]
    for left in tries:
        network, kept = prunable.pruned_copy(left, scores)
        other = copy.deepcopy(network)
        found = reference.refitted_outputs(network, kept)
        reconstruct(other, prunable.network, kept, images())
        with torch.no_grad():
            torch.testing.assert_close(found, other(images()), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in prunable.network.state_dict().items())


def measured(name: str, count: int = 12, free: list[bool] | None = None, round_to: int = 2) -> tuple:
    prunable = prunable_of(lambda: settled(BUILDS[name]), round_to)
    free = free or [True] * len(prunable.groups)
    return prunable, measure_sensitivity(prunable, random_scores(prunable), free, images(count), DISTANCE)


@pytest.mark.parametrize("name", ["plain", "concatenated", "structures"])
def test_curves_start_at_zero_and_have_the_groups_widths(name: str) -> None:
    prunable, sensitivity = measured(name)
    assert sensitivity.images == 12
    for group, curve in zip(prunable.groups, sensitivity.curves, strict=True):
        counts = [count for count, _ in curve]
        assert curve[0] == (group.channels, 0.0)
        assert counts == sorted(set(counts), reverse=True)
        assert set(counts[1:]) == {group.allowed(share * group.channels) for share in (0.85, 0.7, 0.5, 0.3, 0.15)}
        assert all(distance > 0 for _, distance in curve[1:])


def test_a_distance_is_that_of_the_pruned_and_refitted_network() -> None:
    prunable, sensitivity = measured("plain")
    whole, scores = [group.channels for group in prunable.groups], random_scores(prunable)
    for at, curve in enumerate(sensitivity.curves):
        count, distance = curve[-1]
        network, kept = prunable.pruned_copy([*whole[:at], count, *whole[at + 1 :]], scores)
        reconstruct(network, prunable.network, kept, images())
        with torch.no_grad():
            wanted = DISTANCE(network(images()), prunable.network(images())).mean().item()
        assert distance == pytest.approx(wanted, rel=1e-2, abs=1e-6)


def test_groups_that_are_not_free_have_no_curve() -> None:
    prunable, sensitivity = measured("plain", free=[True, False, True])
    assert [bool(curve) for curve in sensitivity.curves] == [True, False, True]
    rows = sensitivity.table(prunable, [4, 5, 6])["groups"]
    first, _, last = prunable.groups
    assert [(row["layers"], row["filters"], row["left"]) for row in rows] == [
        (first.layers, first.channels, 4),
        (last.layers, last.channels, 6),
    ]
    assert rows[0]["curve"][0] == [first.channels, 0.0]


def test_a_group_that_no_step_can_shrink_has_no_curve() -> None:
    _, sensitivity = measured("concatenated", round_to=8)
    assert list(sensitivity.curves) == [[], []]


def test_the_table_names_images_and_unit() -> None:
    prunable = prunable_of(BUILDS["plain"])
    table = Sensitivity(7, [[], [], []], 1.26).table(prunable, [8, 16, 12])
    assert table == {"images": 7, "distance": "nats", "seconds": 1.3, "groups": []}


def test_the_values_are_kept_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images, but no fewer than a quarter of a chunk."""
    network = prunable_of(BUILDS["plain"]).network
    one = Reference(network, images(1))
    size = sum(value.numel() * value.element_size() for chunks in one.values.values() for value in chunks)
    monkeypatch.setattr(reconstruction, "_CHUNK", 8)
    for values, wanted in ((9, 9), (9.9, 9), (100, 12), (1, 2)):
        monkeypatch.setattr(reconstruction, "_MOST_BYTES", int(values * size))
        reference = Reference(network, images())
        assert len(reference.images) == wanted
        assert len(reference.outputs) == wanted
        assert torch.equal(reference.images, images()[:wanted])
