"""Networks that return probabilities: the module that makes them is taken off, anything else is refused."""

import pytest
import torch
from torch import nn

from compress.models.final_activation import without_final_activation
from compress.utils.errors import UserError

IMAGES = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(1, 6, 3), nn.Linear(6, 4), end

    def forward(self, x):
        return self.end(self.head(self.conv(x).mean((2, 3))))


class SoftmaxInEval(Net):
    def forward(self, x):
        logits = self.head(self.conv(x).mean((2, 3)))
        return logits if self.training else logits.softmax(1)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Softmax(-1), nn.LogSoftmax(1), nn.Sigmoid()], ids=str)
def test_a_last_module_is_taken_off(end: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    network = Net(end).eval()
    logits = without_final_activation(network, "mine", (1, 6, 6))
    assert torch.allclose(end(logits(IMAGES)), network(IMAGES), atol=1e-6)
    assert isinstance(network.end, type(end))
    assert isinstance(logits.end, nn.Identity)
    assert f"mine ends in end, a {type(end).__name__}" in caplog.text
    assert logits.state_dict().keys() == network.state_dict().keys()


def test_one_in_a_sequence_before_a_flattening_is_taken_off() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Softmax(1), nn.Flatten())
    logits = without_final_activation(network, "mine", (1, 6, 6))
    assert torch.allclose(logits(IMAGES).softmax(1), network(IMAGES), atol=1e-6)
    assert list(logits.state_dict()) == list(network.state_dict())


@pytest.mark.parametrize(
    ("network", "cause"),
    [
        (Net(lambda x: x.softmax(1)), r"its last operator is softmax \(test_final_activation\.py, line \d+\)"),
        (Net(torch.sigmoid), r"its last operator is sigmoid \(test_final_activation\.py"),
        (SoftmaxInEval(None), r"softmax \(test_final_activation\.py, line \d+\).* return what goes into the softmax"),
        (Net(lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2), r"operator is div .*or the logarithm of the outputs"),
    ],
)
def test_a_function_is_refused_with_its_line(network: nn.Module, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        without_final_activation(network, "mine", (1, 6, 6))


@pytest.mark.parametrize(
    "end", [nn.Identity(), nn.ReLU(), nn.Hardsigmoid(), lambda x: x.log_softmax(1)], ids=["none", "relu", "hard", "log"]
)
def test_what_works_as_logits_stays(end) -> None:
    network = Net(end).train()
    assert without_final_activation(network, "mine", (1, 6, 6)) is network
    assert network.training


def test_a_softmax_inside_is_none_of_the_end() -> None:
    class Attention(Net):
        def forward(self, x):
            x = self.conv(x).flatten(2)
            return self.head((x * self.end(x.mean(1, keepdim=True))).sum(2))

    network = Attention(nn.Softmax(-1))
    assert without_final_activation(network, "mine", (1, 6, 6)) is network
