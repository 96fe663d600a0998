"""Corrections behind calibration: means come back, rounding is learned on the grid, and the file is what torch has."""

import copy
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.export.onnx import export_onnx
from compress.methods.quantization.adaround import learn_rounding, sample
from compress.methods.quantization.correction import correct
from compress.methods.quantization.pt2e import calibrate, convert, prepare, prepare_equalized
from compress.methods.quantization.simulation import Grid, SimulatedLayer, simulate
from compress.models.graph.aten_patterns import CONVOLUTIONS, LINEARS, is_call, layer_name
from compress.models.graph.paired_interpreter import PairedInterpreter

from .tiny_networks import Mobile, Residual, Shuffle, settled

STEPS = 200


@pytest.fixture(scope="module")
def many() -> Tensor:
    """(256, 3, 16, 16), seeded."""
    return torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def biased() -> nn.Sequential:
    """Kernels whose small weights all lie 0.4 steps of 7 bits from zero: nearest rounding drops every one of them.

    Inputs behind a ReLU are never negative, so that what is dropped does not average out.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    with torch.no_grad():
        for layer in (network[2], network[4], network[8]):
            layer.weight.fill_(0.4 / 64)
            layer.weight.flatten(1)[:, 0] = 1.0  # sets the scale: 1 / 64
    return network.eval()


def settled_residual() -> Residual:
    return settled(Residual(), torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2)))


def calibrated(network: nn.Module, images: Tensor, equalized: bool = False) -> GraphModule:
    if equalized:
        prepared, _ = prepare_equalized(network, images[:1], 7, qat=False)
    else:
        prepared = prepare(network, images[:1], 7, qat=False)
    calibrate(prepared, images.split(64))
    return prepared


@torch.no_grad()
def error(prepared: GraphModule, network: nn.Module, images: Tensor) -> float:
    """Squared error of the int8 logits, as a share of the float ones' variance."""
    wanted = network(images)
    return ((convert(prepared)(images) - wanted).square().mean() / wanted.var()).item()


def layers(pair: PairedInterpreter, graph: torch.fx.Graph) -> Iterator[SimulatedLayer]:
    """Every layer with weights, at its turn."""
    for node in graph.nodes:
        if is_call(node, CONVOLUTIONS | LINEARS):
            yield SimulatedLayer.at(node, pair)
        pair.step(node)


@pytest.mark.parametrize("build", [biased, settled_residual])
def test_bias_correction_brings_the_mean_logits_back(many, build):
    network = build()
    prepared = calibrated(network, many)
    with torch.no_grad():
        wanted = network(many).mean(0)
        before = (convert(prepared)(many).mean(0) - wanted).abs().mean()
        correct(prepared, list(many.split(64)), 0, True, 0)
        after = (convert(prepared)(many).mean(0) - wanted).abs().mean()
    assert after < 0.1 * before


def test_bias_correction_is_sequential(many):
    """In one pass, against inputs that are not corrected yet, errors are made up for once too often."""
    network = biased()
    images = list(many.split(64))
    sequential, one_pass = (calibrated(network, many) for _ in range(2))
    correct(sequential, images, 0, True, 0)
    with torch.no_grad():
        for layer in layers(simulate(one_pass, images), one_pass.graph):
            new, old = (torch.cat(layer.sums(side)).transpose(0, 1).flatten(1).mean(1) for side in (False, True))
            one_pass.get_parameter(f"{layer_name(layer.node)}.bias").add_(old - new)
    assert error(one_pass, network, many) > error(calibrated(network, many), network, many)
    assert error(sequential, network, many) < 0.01 * error(one_pass, network, many)


def test_adaround_keeps_what_nearest_rounding_drops(many):
    network = biased()
    errors = {}
    for steps in (0, STEPS):
        prepared = calibrated(network, many)
        if steps:
            correct(prepared, list(many.split(64)), steps, False, 0)
        errors[steps] = error(prepared, network, torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(9)))
    assert errors[STEPS] < 0.05 * errors[0]


@pytest.mark.parametrize("build", [Residual, Mobile])
def test_every_weight_ends_on_a_neighbour_on_its_grid(many, build):
    prepared = calibrated(settled(build(), many[:64]), many)
    before = copy.deepcopy(prepared)
    found = correct(prepared, list(many.split(64)), 40, False, 0)
    moved = 0
    for node in prepared.graph.nodes:
        if not is_call(node, CONVOLUTIONS | LINEARS):
            continue
        name = layer_name(node)
        grid = Grid(prepared.get_submodule(node.args[1].target))
        old, new = (module.get_parameter(f"{name}.weight").detach() for module in (before, prepared))
        scale = grid.scale.view(-1, *[1] * (new.dim() - 1))
        assert torch.equal(grid(new), new)
        assert ((new - old).abs() < 1.0001 * scale).all()
        assert grid.low <= (new / scale).min().round()
        assert (new / scale).max().round() <= grid.high
        moved += int((grid(old) != new).sum())
        assert torch.equal(before.get_parameter(f"{name}.bias"), prepared.get_parameter(f"{name}.bias"))
        assert found.errors[name][1] < 1.02 * found.errors[name][0]
    assert moved > 20


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 12, 3, groups=6, padding=1),
        nn.Conv2d(6, 8, (3, 1), groups=2, dilation=2, padding=(2, 0)),
        nn.Conv2d(6, 8, 1, bias=False),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 8, 5, stride=3, padding=2)),
        nn.Sequential(nn.Flatten(2), nn.Linear(100, 7)),
        nn.Sequential(nn.Flatten(), nn.Linear(600, 7)),
    ],
)
@torch.no_grad()
def test_samples_are_what_the_layer_sees(layer):
    """Drawn from a network that rounds nothing, they give the targets."""
    torch.manual_seed(0)
    images = torch.randn(24, 6, 10, 10)
    prepared = prepare(nn.Sequential(layer, nn.ReLU(), nn.Flatten()), images[:1], 7, qat=False)
    calibrate(prepared, [images])
    pair = simulate(prepared, list(images.split(8)))
    pair.network = pair.original
    (found,) = layers(pair, prepared.graph)
    samples = sample(found, torch.Generator().manual_seed(0))
    assert samples.targets.std() > 0.1
    assert samples.errors(found.parameter("weight")).max() < 1e-10


@torch.no_grad()
def test_the_addend_of_a_sum_is_part_of_the_target(many):
    """Where the shortcut is wrong, the layer in front of the sum makes up for it."""
    prepared = calibrated(settled(Residual(), many[:64]), many)
    pair = simulate(prepared, list(many.split(64)))
    with_sum = [layer for layer in layers(pair, prepared.graph) if layer.addend is not None]
    assert [layer_name(layer.node) for layer in with_sum] == ["first.1.0", "second.1.0"]
    assert [[clamp.target.__name__ for clamp in layer.clamps] for layer in with_sum] == [["relu.default"]] * 2


def test_learned_rounding_is_never_worse_on_its_samples(many):
    prepared = calibrated(settled(Residual(), many[:64]), many)
    with torch.no_grad():
        for layer in layers(simulate(prepared, list(many.split(64))), prepared.graph):
            weight, grid = layer.parameter("weight"), layer.grid()
            samples = sample(layer, torch.Generator().manual_seed(0))
            learned = learn_rounding(samples, weight, grid, 5)
            assert (samples.errors(learned) <= samples.errors(grid(weight))).all()


@pytest.mark.parametrize("build", [Residual, Mobile])
def test_all_three_reload_bit_for_bit_and_export(many, run_onnx, tmp_path, build):
    prepared = calibrated(settled(build(), many[:64]), many, equalized=True)
    correct(prepared, list(many.split(64)), 10, True, 0)
    save_file(prepared.state_dict(), tmp_path / "state.safetensors")
    reloaded = prepare(settled(build(), many[64:128], 7), many[:1], 7, qat=False)
    reloaded.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    converted = convert(prepared)
    export_onnx(converted, tmp_path / "model.onnx", (3, 16, 16))
    with torch.no_grad():
        expected = converted(many)
        assert torch.equal(convert(reloaded)(many), expected)
    assert (run_onnx(tmp_path / "model.onnx", many) - expected).abs().mean() < 0.01 * expected.std()


def test_the_seed_decides_the_outcome(many):
    states = []
    for seed in (0, 0, 1):
        prepared = calibrated(settled(Shuffle(), many[:64]), many)
        correct(prepared, list(many.split(64)), 5, True, seed)
        states.append(prepared.state_dict())
    same, other = ([torch.equal(value, states[0][name]) for name, value in state.items()] for state in states[1:])
    assert all(same)
    assert not all(other)


def test_what_cannot_be_corrected_is_named(many):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.first(x)).relu()).mean((2, 3))

    torch.manual_seed(0)
    prepared = calibrated(Odd().eval(), many)
    found = correct(prepared, [many], 0, True, 0)
    assert [row["reason"] for row in found.left_out] == [
        "bias not corrected: it has none of its own",
        *["not corrected: its weight is computed or shared"] * 2,
    ]


def test_without_ranges_it_says_so(many):
    with pytest.raises(ValueError, match="calibrate"):
        correct(prepare(Residual().eval(), many[:1], 7, qat=False), [many], 0, True, 0)
