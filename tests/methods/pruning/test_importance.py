"""Importance: the scores are torch-pruning's own, or by hand where its own calls fail, and nothing stays behind."""

from collections.abc import Callable

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.importance import LabelledImages, score_channels
from compress.utils.errors import UserError
from tests.methods.pruning.networks import SHAPE, Network, conv, pooled
from tests.methods.pruning.test_sparsity import NETWORKS, plain
from tests.methods.pruning.test_zoo import Structures

EXAMPLE = torch.zeros(1, *SHAPE)
NAMES = PruneConfig.__dataclass_fields__["importance"].metadata["choices"]
FROM_IMAGES = ["taylor", "obdc", "hessian", "activation"]
BUILDS: dict[str, Callable[[], nn.Module]] = NETWORKS | {"structures": Structures}


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A seeded network in which no two filters are alike, in eval mode."""
    torch.manual_seed(0)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def labelled(batches: int = 2, size: int = 3) -> LabelledImages:
    generator = torch.Generator().manual_seed(1)
    examples = [
        (torch.randn(size, *SHAPE, generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(batches)
    ]
    return LabelledImages(lambda: iter(examples), F.cross_entropy)


def scores_of(network: nn.Module, importance: str, images: LabelledImages | None = None) -> dict[str, Tensor]:
    """The scores by the first layer of each group."""
    prunable = PrunableNetwork(network, EXAMPLE)
    found = score_channels(prunable, importance, images or labelled())
    return {group.layers[0]: score for group, score in zip(prunable.groups, found, strict=True) if score is not None}


def torch_prunings(network: nn.Module, measure: Callable) -> dict[str, Tensor]:
    """What torch-pruning says of the groups of its own graph, which has only the logits as an end."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, EXAMPLE)
    names = {module: name for name, module in network.named_modules()}
    groups = graph.get_all_groups(ignored_layers=[network[-1]])
    return {names[group[0].dep.target.module]: measure(group) for group in groups}


@pytest.mark.parametrize("importance", NAMES)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_every_channel_has_a_finite_score(build: Callable[[], nn.Module], importance: str) -> None:
    network = trained(build)
    prunable = PrunableNetwork(network, EXAMPLE)
    if importance == "bn_scale" and not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        with pytest.raises(UserError, match="in which no layer has what it reads"):
            score_channels(prunable, importance, labelled())
        return
    scores = score_channels(prunable, importance, labelled())
    for group, score in zip(prunable.groups, scores, strict=True):
        if importance == "bn_scale" and score is None:
            continue
        assert score.shape == (group.channels,)
        assert score.isfinite().all()
        assert (score >= 0).all()
        assert len(score.unique()) > 1


@pytest.mark.parametrize(
    ("importance", "measure"),
    [
        ("l1", torch_pruning.importance.GroupMagnitudeImportance(p=1)),
        ("l2", torch_pruning.importance.GroupMagnitudeImportance(p=2)),
        ("bn_scale", torch_pruning.importance.BNScaleImportance()),
        ("lamp", torch_pruning.importance.LAMPImportance()),
        ("fpgm", torch_pruning.importance.FPGMImportance()),
    ],
)
def test_scores_of_weights_are_torch_prunings(importance: str, measure: Callable) -> None:
    wanted = {name: score for name, score in torch_prunings(trained(plain), measure).items() if score is not None}
    found = scores_of(trained(plain), importance)
    assert set(found) == set(wanted)
    for name, score in wanted.items():
        torch.testing.assert_close(found[name], score)


def test_taylor_is_torch_prunings_after_a_backward_pass() -> None:
    images, network = labelled(), trained(plain)
    for batch, targets in images.batches():
        images.loss(network(batch), targets).backward()
    wanted = torch_prunings(network, torch_pruning.importance.GroupTaylorImportance())
    found = scores_of(trained(plain), "taylor", images)
    assert set(found) == set(wanted) == {"0", "3", "8"}
    for name, score in wanted.items():
        torch.testing.assert_close(found[name], score)


def test_activation_is_torch_prunings_on_one_batch() -> None:
    images, network = labelled(batches=1), trained(plain)
    measure = torch_pruning.importance.ActivationImportance()
    with measure.compute_importance(network):
        network(next(images.batches())[0])
    wanted = torch_prunings(network, measure)
    found = scores_of(trained(plain), "activation", images)
    assert set(found) == set(wanted)
    for name, score in wanted.items():
        torch.testing.assert_close(found[name], score)


def test_activation_averages_over_all_batches() -> None:
    network, images = trained(plain), labelled(batches=3)
    whole = torch.cat([batch for batch, _ in images.batches()])
    at_once = LabelledImages(lambda: iter([(whole, torch.zeros(len(whole), dtype=torch.long))]), F.cross_entropy)
    found, wanted = scores_of(network, "activation", images), scores_of(network, "activation", at_once)
    for name, score in wanted.items():
        torch.testing.assert_close(found[name], score)


def squared_gradients(network: nn.Module, images: LabelledImages) -> dict[str, Tensor]:
    """The mean over images, each with a backward pass of its own."""
    squares: dict[str, list[Tensor]] = {}
    for batch, targets in images.batches():
        for image, target in zip(batch, targets, strict=True):
            parameters = dict(network.named_parameters())
            loss = images.loss(network(image[None]), target[None])
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                squares.setdefault(name, []).append(gradient.square())
    return {name: torch.stack(values).mean(0) for name, values in squares.items()}


@pytest.mark.parametrize("importance", ["hessian", "obdc"])
def test_curvatures_are_those_of_single_images(importance: str) -> None:
    """The mean, over the layers of a group, of w^2 times the mean squared gradient, with mean 1 in the group."""
    network, images = trained(plain), labelled()
    squares = squared_gradients(network, images)
    epsilon = 1e-10 if importance == "obdc" else 0  # torch-pruning's
    weighted = {name: value.detach().square() * (squares[name] + epsilon) for name, value in network.named_parameters()}
    groups = {"0": ("0", "1", "3"), "3": ("3", "4", "8"), "8": ("8", None, "10")}
    found = scores_of(network, importance, images)
    assert set(found) == set(groups)
    for name, (layer, norm, reader) in groups.items():
        parts = [weighted[f"{layer}.weight"].flatten(1).sum(1)]
        if importance == "hessian":
            parts.append(weighted[f"{reader}.weight"].transpose(0, 1).flatten(1).sum(1))
            parts += [weighted[f"{norm}.weight"]] if norm else []
        score = torch.stack(parts).mean(0)
        torch.testing.assert_close(found[name], score / score.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("importance", ["hessian", "obdc"])
def test_single_images_are_as_many_as_are_needed(importance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the limit change nothing: not in a batch that goes beyond it, and not in later ones."""
    monkeypatch.setattr("compress.methods.pruning.importance._SINGLE_IMAGES", 4)
    (first, targets), (second, others) = labelled().batches()
    few = [(torch.cat([first, second[:1]]), torch.cat([targets, others[:1]]))]
    found = scores_of(trained(plain), importance)
    for name, score in scores_of(trained(plain), importance, LabelledImages(lambda: few, F.cross_entropy)).items():
        torch.testing.assert_close(found[name], score)


def test_batch_norm_scales_of_a_network_without_any_are_refused() -> None:
    network = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.Flatten(), nn.Linear(8 * 256, 5))
    with pytest.raises(UserError, match=r"prune\.importance=bn_scale .* expected batch norm .* prune\.importance=l1"):
        score_channels(PrunableNetwork(network, EXAMPLE), "bn_scale")


def test_a_group_without_batch_norm_has_no_score() -> None:
    prunable = PrunableNetwork(trained(plain), EXAMPLE)
    scores = score_channels(prunable, "bn_scale")
    assert [group.layers for group, score in zip(prunable.groups, scores, strict=True) if score is None] == [["8"]]


def test_images_are_asked_for_where_they_are_needed() -> None:
    with pytest.raises(ValueError, match=r"prune\.importance=taylor without images"):
        score_channels(PrunableNetwork(trained(plain), EXAMPLE), "taylor")


@pytest.mark.parametrize("importance", NAMES)
def test_frozen_parameters_are_ranked_as_others_and_stay_frozen(importance: str) -> None:
    network, free = trained(plain), trained(plain)
    for name, value in network.named_parameters():
        value.requires_grad_(name not in ("0.weight", "4.weight", "10.bias"))
    torch.manual_seed(3)
    found = scores_of(network, importance)
    torch.manual_seed(3)
    wanted = scores_of(free, importance)
    assert all(torch.equal(found[name], score) for name, score in wanted.items())
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen == {"0.weight", "4.weight", "10.bias"}


@pytest.mark.parametrize("importance", NAMES)
def test_nothing_stays_behind_and_two_calls_agree(importance: str) -> None:
    network = trained(plain)
    prunable = PrunableNetwork(network, EXAMPLE)
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    scores = []
    for _ in range(2):
        torch.manual_seed(3)
        scores.append(score_channels(prunable, importance, labelled()))
    assert all(
        torch.equal(one, other) for one, other in zip(*scores, strict=True) if one is not None and other is not None
    )
    assert [one is None for one in scores[0]] == [other is None for other in scores[1]]
    assert all(value.grad is None for value in network.parameters())
    assert {name: set(vars(module)) for name, module in network.named_modules()} == attributes
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, kind) for module in network.modules() for kind in hooks)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("importance", FROM_IMAGES)
def test_layers_that_the_loss_does_not_reach_are_ranked_too(importance: str) -> None:
    network = trained(
        lambda: Network(
            lambda net, x: net.head(pooled(net.last(net.first(x).relu()))) + 0 * net.side(net.first(x)).mean(),
            first=conv(3, 8), last=conv(8, 8), side=conv(8, 8), unused=conv(3, 8), head=nn.Linear(8, 5),
        )
    )  # fmt: skip
    assert all(score.isfinite().all() for name, score in scores_of(network, importance).items() if name != "side")
