"""Networks that return something else in train mode train on what they return in eval mode."""

import logging

import pytest
import torch
from torch import nn

from compress.data.dataset import Batch
from compress.methods.distillation.losses import label_loss
from compress.training.train_outputs import TrainOutputs, describe, find_logits
from compress.utils.errors import UserError
from tests.own_outputs import Outputs, Small, TwoHeads, WithAuxiliaryHead

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PACKED = {
    "tuple": lambda logits, aux: (logits, aux),
    "list, auxiliary first": lambda logits, aux: [aux, logits],
    "dict": lambda logits, aux: {"aux": aux, "logits": logits},
    "dict of other names": lambda logits, aux: {"out": logits, "aux": [aux]},
    "named tuple": Outputs,
    "side by side": lambda logits, aux: torch.stack([logits, aux]),
}


def step(network: nn.Module) -> None:
    """One step of training, all but the change of the weights."""
    value, logits = label_loss(0.0)(network.train(), Batch(IMAGES, torch.arange(6) % 3, torch.arange(6)))
    assert logits.shape == (6, 3)
    value.backward()


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_the_head_of_eval_mode_is_trained_and_the_other_one_is_named(pack, caplog) -> None:
    network = WithAuxiliaryHead(pack)
    with caplog.at_level(logging.INFO, "compress"):
        step(network)
    assert network.head.weight.grad.abs().sum() > 0
    assert network.aux.weight.grad is None
    assert "auxiliary" in caplog.text
    assert "6, 3)" in caplog.text


def test_both_heads_are_trained_where_eval_mode_reads_both() -> None:
    network = TwoHeads()
    step(network)
    assert network.head.weight.grad.abs().sum() > 0
    assert network.second.weight.grad.abs().sum() > 0


def test_a_head_that_pruning_did_not_see_is_left_alone() -> None:
    network = WithAuxiliaryHead(lambda *both: both)
    network.stem, network.body[0] = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
    step(network)
    assert network.stem.weight.grad.abs().sum() > 0


def test_layers_stay_in_train_mode() -> None:
    network = WithAuxiliaryHead(lambda *both: both)
    step(network)
    assert network.stem[1].num_batches_tracked == 2  # the first look, and the step
    outputs = TrainOutputs()
    for _ in range(3):
        network.train()
        outputs.logits(network, IMAGES)
    assert network.stem[1].num_batches_tracked == 6


def test_random_numbers_are_as_without_a_look() -> None:
    network = WithAuxiliaryHead(lambda *both: both)
    torch.manual_seed(0)
    step(network)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


def test_a_network_with_one_output_is_called_once() -> None:
    network, calls = Small(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    step(network)
    assert calls == [1]


def test_an_error_of_the_users_own_stays() -> None:
    def fails(network: Small, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        step(Small(fails))


def test_outputs_without_logits_are_refused() -> None:
    with pytest.raises(UserError, match=r"received a network that returns a dict with loss \(\)"):
        find_logits({"loss": torch.tensor(1.0)})
    assert describe([torch.zeros(2, 3), {"aux": torch.zeros(1)}]) == "a list with 0 (2, 3), 1.aux (1,)"
