"""Detectors: on every classifier of the registry, with a classifier's weights, torchvision's, and the user's own."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from compress.config.stage_settings import TeacherConfig
from compress.models import ZOO, Architecture, build
from compress.models.anchor_rows import anchors_of, class_logits, decode
from compress.models.from_config import teacher_from_config
from compress.models.graph.tracing import trace
from compress.models.identity_norms import identity_norms, set_statistics
from compress.models.user_detector import to_detector
from compress.utils.errors import UserError
from tests.own_networks import GridDetector

ANCHORS = {"scales": [0.2, 0.95], "ratios": [2.0, 3.0]}
SIDE = 64
# MobileViT's forward pass counts its patches, which fx cannot trace; the message names the cause.
NOT_TRACED = {"mobilevit_xxs", "mobilevit_shallow"}
BACKBONES = sorted(set(ZOO) - NOT_TRACED - {"plain", "resnet110", "wrn_28_10", "wrn_40_2"})


def architecture(model: str, classes: int = 3, anchors: dict[str, list[float]] = ANCHORS) -> Architecture:
    return Architecture(model, "imagenet", 3, classes, SIDE, anchors)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_classifier_is_a_backbone(name: str) -> None:
    """The first map is the last of its size: in MobileNets the expansion before the last stride."""
    network = build(architecture(f"ssdlite/{name}")).eval()
    with torch.no_grad():
        rows = network(torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
        maps = network.backbone(torch.zeros(1, 3, SIDE, SIDE))
    assert rows.shape == (2, 6 * sum(one.shape[2] * one.shape[3] for one in maps), 9 + 4)
    assert [one.shape[2] for one in maps] == sorted((one.shape[2] for one in maps), reverse=True)
    assert maps[-1].shape[2] == 1 or len(maps) == 6
    assert rows.isfinite().all()
    assert not [key for key in network.state_dict() if "classifier" in key or ".fc." in key]


def test_mobilenets_first_map_is_that_of_the_paper() -> None:
    maps = build(architecture("ssdlite/mobilenet_v2")).eval().backbone(torch.zeros(1, 3, SIDE, SIDE))
    assert [one.shape[1] for one in maps[:2]] == [576, 1280]


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(UserError, match="mobilevit_xxs as a backbone"):
        build(architecture("ssdlite/mobilevit_xxs"))


def test_torchvisions_detector_has_its_names_and_anchors() -> None:
    network = build(Architecture("ssdlite320_mobilenet_v3_large", "imagenet", 3, 90, 320, ANCHORS)).eval()
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    network.load_state_dict(reference.state_dict())
    image = torch.rand(3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = network((image[None] - 0.5) / 0.5)  # as torchvision normalises for this detector
        images = reference.transform([image])[0]
        features = list(reference.backbone(images.tensors).values())
        expected = reference.head(features)
    (anchors,) = reference.anchor_generator(images, features)
    boxes = reference.box_coder.decode_single(expected["bbox_regression"][0], anchors)
    torch.testing.assert_close(class_logits(rows), expected["cls_logits"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(decode(rows)[0][0], boxes.clamp(0, 320), rtol=1e-3, atol=1e-2)


def test_scales_are_one_a_map_and_one_more() -> None:
    network = build(
        architecture("ssdlite/resnet8", anchors={"scales": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0], "ratios": []})
    )
    anchors = anchors_of(network.eval()(torch.zeros(1, 3, SIDE, SIDE)))[0]
    assert (anchors[0, 2] - anchors[0, 0]).item() == pytest.approx(0.1 * SIDE)
    with pytest.raises(UserError, match="3 values for 6 feature maps"):
        build(architecture("ssdlite/resnet8", anchors={"scales": [0.1, 0.2, 0.4], "ratios": []}))


def test_the_backbone_starts_from_a_classifiers_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = build(Architecture("resnet8", "imagenet", 3, 10, SIDE))
    path = tmp_path / "classifier.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in classifier.state_dict().items()}}, path)
    config = TeacherConfig(model="ssdlite/resnet8", stem="imagenet", backbone_checkpoint=str(path))
    network, found, remarks = teacher_from_config(config, (3, SIDE, SIDE), 3)
    assert found.anchors == ANCHORS
    weights = classifier.state_dict()
    loaded = network.get_submodule("backbone.features").state_dict()
    assert loaded
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert any("no part of the backbone" in remark for remark in remarks)


def test_a_backbones_checkpoint_has_to_fit(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(build(Architecture("resnet20", "imagenet", 3, 10, SIDE)).state_dict(), path)
    with pytest.raises(UserError, match=r"other shapes|lacks"):
        teacher_from_config(
            TeacherConfig(model="ssdlite/mobilenet_v2", backbone_checkpoint=str(path)), (3, SIDE, SIDE), 3
        )
    with pytest.raises(UserError, match="backbone_checkpoint with resnet20"):
        teacher_from_config(TeacherConfig(model="resnet20", backbone_checkpoint=str(path)), (3, SIDE, SIDE), 3)


def test_a_trace_reaches_all_layers() -> None:
    """Pruning refits them along it."""
    network = build(architecture("ssdlite/mobilenet_v2")).eval()
    called = {node.target for node in trace(network, torch.zeros(1, 3, SIDE, SIDE)).nodes if node.op == "call_module"}
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert layers <= called


def test_new_weights_are_not_taken_for_folded_ones() -> None:
    assert not identity_norms(build(architecture("ssdlite/resnet8")))


def test_folded_batch_norm_gets_statistics_and_the_network_computes_the_same() -> None:
    """In eval mode exactly, and nearly so in training on the images that set them."""
    torch.manual_seed(0)
    network = build(architecture("ssdlite/resnet8")).eval()
    norms = [module for module in network.backbone.features.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.fill_(1)
        norm.bias.data.normal_()
    assert len(identity_norms(network.backbone.features)) == len(norms)
    images = torch.randn(8, 3, SIDE, SIDE)
    with torch.no_grad():
        before = network.backbone.features(images)
        far = network.backbone.features.train()(images)
        for norm in norms:  # the training forward pass moved them
            norm.reset_running_stats()
        set_statistics(network.eval(), norms, images)
        after = network.backbone.features(images)
        trained = network.backbone.features.train()(images)
    for old, new, train, first in zip(before, after, trained, far, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)
        assert (train - old).abs().mean() < 0.1 * (first - old).abs().mean()
    assert not identity_norms(network.backbone.features)


@pytest.mark.parametrize("named", [False, True])
def test_a_users_own_detector_becomes_rows(named: bool) -> None:
    network = GridDetector(3, named).eval()
    detector = to_detector(network, "own:build", (3, 32, 32), 3)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows, outputs = detector(images), network(images)
    regression, logits = outputs.values() if named else outputs
    assert torch.equal(class_logits(rows), logits)
    assert torch.equal(rows[..., :4], regression)
    torch.testing.assert_close(anchors_of(rows)[0], network.anchors)


def test_torchvisions_trained_ssd_is_taken_apart() -> None:
    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    detector = to_detector(network, "own:build", (3, 320, 320), 3)
    assert detector.state_dict().keys() == network.state_dict().keys()


def test_a_detector_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="no tensor `anchors`"):
        to_detector(nn.Conv2d(3, 4, 3), "own:build", (3, SIDE, SIDE), 3)
    with pytest.raises(UserError, match="logits of 4 classes"):
        to_detector(GridDetector(3), "own:build", (3, 32, 32), 5)
    wrong = nn.Conv2d(3, 4, 3)
    wrong.anchors = torch.zeros(7, 4)
    with pytest.raises(UserError, match=r"returns a tensor \(2, 4, 62, 62\)"):
        to_detector(wrong, "own:build", (3, SIDE, SIDE), 3)
