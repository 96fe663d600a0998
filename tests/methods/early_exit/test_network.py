"""A network with exits: selects by image, returns all ends in train mode, and its captured graph does the same."""

import pytest
import torch
from torch import Tensor, nn

from compress.data.dataset import Batch
from compress.methods.conditional.graph import GraphEnds
from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.training import ends_loss
from compress.methods.early_exit.network import EarlyExitNetwork, ExitShape, rebuild_early_exit
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.models.graph.capture import capture
from compress.utils.exit_names import NEVER
from tests.early_exits import IMAGES, exiting, mixed


def chosen(network: EarlyExitNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """What eval mode should return, and the end at which each image leaves, worked out one image after the other."""
    ends = network.ends(images)
    rows, places = [], []
    for at in range(len(images)):
        for place, exit in enumerate(network.exits):
            probabilities = (ends[place][at] / exit.temperature).softmax(0)
            if probabilities.max() >= exit.threshold:
                break
        else:
            place = len(network.exits)
        rows.append(ends[place][at])
        places.append(place)
    return torch.stack(rows), torch.tensor(places)


@torch.no_grad()
def test_each_image_leaves_at_the_first_exit_that_is_sure_of_it() -> None:
    network = mixed()
    logits, places = chosen(network, IMAGES)
    assert places.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(network(IMAGES), logits)
    torch.testing.assert_close(network(IMAGES[:1]), logits[:1])  # alone as in a batch


@torch.no_grad()
@pytest.mark.parametrize(("thresholds", "end"), [([0.0, 0.0], 0), ([NEVER, 0.0], 1), ([NEVER, NEVER], 2)])
def test_thresholds_can_send_all_images_to_one_end(thresholds: list[float], end: int) -> None:
    network = exiting()
    set_choice(network, [1.0, 1.0], thresholds)
    assert torch.equal(network(IMAGES), network.ends(IMAGES)[end])


@torch.no_grad()
def test_in_train_mode_it_returns_all_ends_and_the_last_is_the_networks_own() -> None:
    network = exiting()
    torch.testing.assert_close(network.ends(IMAGES)[-1], network.network(IMAGES))
    found = network.train()(IMAGES)
    assert [tuple(logits.shape) for logits in found] == [(len(IMAGES), 3)] * 3
    assert all(not module._forward_hooks for module in network.modules())


def test_an_exit_reads_its_input_before_the_next_layer_overwrites_it() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 3))
    network = EarlyExitNetwork(layers, [ExitShape("0", 4, 8, 1, 2, 0)], 3).eval()
    (exit,) = network.exits
    with torch.no_grad():
        torch.testing.assert_close(network.ends(IMAGES)[0], exit(layers[0](IMAGES)))


def test_temperatures_and_thresholds_are_in_the_state() -> None:
    network = mixed()
    other = rebuild_early_exit(exiting(seed=1).network, [vars(shape) for shape in network.shapes], 3)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(IMAGES), network(IMAGES))


def test_the_end_does_not_learn_from_its_exits() -> None:
    network = exiting().train()
    network.network.eval()
    loss = ends_loss(None, temperature=2.0, alpha=1.0)
    value, _ = loss(network, Batch(IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64), torch.arange(len(IMAGES))))
    value.backward()
    assert network.network.linear.weight.grad is None
    assert all(value.grad is not None for value in network.exits.parameters())
    assert network.network.conv1.weight.grad is not None  # what lies before an exit learns with it


@torch.no_grad()
@pytest.mark.parametrize("qat", [False, True])
def test_the_graph_of_a_prepared_and_of_an_int8_network_has_the_same_ends(qat: bool) -> None:
    network = mixed()
    captured = GraphEnds(capture(network, IMAGES[:1])).eval()
    for own, wanted in zip(captured.ends(IMAGES), network.ends(IMAGES), strict=True):
        torch.testing.assert_close(own, wanted)
    prepared = prepare(network, IMAGES[:1], 7, qat)
    calibrate(prepared, [IMAGES])
    int8 = convert(prepared)
    ends = GraphEnds(int8).eval()
    assert torch.equal(ends(IMAGES), int8(IMAGES))
    assert all(torch.equal(*pair) for pair in zip(ends.train()(IMAGES), ends.ends(IMAGES), strict=True))
    spread = torch.cat(network.ends(IMAGES)).std()
    for own, wanted in zip(ends.ends(IMAGES), network.ends(IMAGES), strict=True):
        assert (own - wanted).abs().mean() < 0.2 * spread
        assert len(own.unique()) > 0.95 * own.numel()  # float logits, not rounded to 8 bits, of which many are equal
    set_choice(int8, [1.0, 1.0], [0.0, 0.0])
    assert torch.equal(int8(IMAGES), ends.ends(IMAGES)[0])
    assert torch.equal(ends.eval()(IMAGES), int8(IMAGES))  # it shares the thresholds


def test_the_prepared_graph_learns_through_its_ends() -> None:
    prepared = prepare(mixed(), IMAGES[:1], 7, qat=True)
    calibrate(prepared, [IMAGES])
    ends = GraphEnds(prepared).train()
    before = prepared.state_dict()["network.linear.weight"].clone()
    value, _ = ends_loss(lambda batch: torch.zeros(len(IMAGES), 3), 2.0, 0.9)(
        ends, Batch(IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64), torch.arange(len(IMAGES)))
    )
    value.backward()
    torch.optim.SGD(ends.parameters(), 0.1).step()
    assert not torch.equal(prepared.state_dict()["network.linear.weight"], before)  # it shares the parameters
