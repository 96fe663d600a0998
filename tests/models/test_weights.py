"""Weights as compilers, trainers and libraries save them: under keys, behind prefixes, averaged, in other types."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.models.weights import load_checkpoint
from compress.utils.errors import UserError


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), bn=nn.BatchNorm2d(4)))
    return nn.Sequential(OrderedDict(body=body, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4, 3)))


STATE = {name: value + 0.5 if value.is_floating_point() else value for name, value in network().state_dict().items()}
RAW = {name: value * 0 for name, value in STATE.items()}


def under(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def load(content: Any, folder: Path, key: str | None = None) -> tuple[nn.Module, list[str]]:
    torch.save(content, folder / "x.pt")
    loaded = network()
    return loaded, load_checkpoint(loaded, str(folder / "x.pt"), key)


def is_state(loaded: nn.Module, state: dict[str, torch.Tensor] = STATE) -> bool:
    return all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


LINE = argparse.Namespace(lr=0.1, output=Path("somewhere"))
FORMS = {
    "compiled": under("_orig_mod."),
    "parallel": under("module."),
    "both": under("module._orig_mod."),
    "both, turned": under("_orig_mod.module."),
    "a compiled part": {name.replace("body.", "body._orig_mod."): value for name, value in STATE.items()},
    "any prefix": under("backbone.classifier."),
    "fabric": under("_forward_module."),
    "averaged": {"n_averaged": torch.tensor(5), **under("module.")},
    "lightning": {"state_dict": under("model."), "epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "lightning, net": {"state_dict": under("net."), "pytorch-lightning_version": "2.1"},
    "lightning with a loss": {"state_dict": under("model.") | {"criterion.weight": torch.ones(3)}},
    "torchvision": {"model": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 1, "args": LINE},
    "timm": {"state_dict": STATE, "arch": "x", "metric": np.float64(91.2), "args": LINE, "version": 2},
    "model_state_dict": {"model_state_dict": STATE, "epoch": 3},
    "net": {"net": under("module."), "acc": 93.0},
    "deep": {"checkpoint": {"weights": {"ours": under("module.")}}},
    "a part each": {"body": {n[5:]: v for n, v in STATE.items() if n.startswith("body.")},
                    "head": {n[5:]: v for n, v in STATE.items() if n.startswith("head.")}},
    "counted": STATE | {"body.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "old": {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_understood(form: str, tmp_path: Path) -> None:
    loaded, _ = load(FORMS[form], tmp_path)
    assert is_state(loaded, STATE)


def test_a_network_in_a_network_takes_the_weights_of_the_inner_one(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    outer = nn.ModuleDict({"model": network()})
    load_checkpoint(outer, str(tmp_path / "x.pt"))
    assert is_state(outer["model"])


@pytest.mark.parametrize(
    ("content", "raw", "other"),
    [
        ({"state_dict": RAW, "state_dict_ema": STATE}, "state_dict", "state_dict_ema"),
        ({"model": RAW, "model_ema": {"n_averaged": torch.tensor(1), **under("module.")}}, "model", "model_ema"),
        ({"state_dict": under("model.", RAW) | under("ema_model.")}, "model", "state_dict.ema_model"),
    ],
)
def test_averaged_weights_are_taken_and_said_and_a_key_takes_the_others(
    content: dict, raw: str, other: str, tmp_path: Path
) -> None:
    loaded, remarks = load(content, tmp_path)
    assert is_state(loaded)
    assert "averaged" in remarks[0]
    assert other in remarks[0]
    loaded, remarks = load(content, tmp_path, raw)
    assert is_state(loaded, RAW)
    assert is_state(load(content, tmp_path, other)[0])


def test_several_networks_are_not_guessed_between(tmp_path: Path) -> None:
    content = {"student": RAW, "teacher": STATE}
    with pytest.raises(UserError, match=r"2 sets of weights: student, teacher.*teacher\.checkpoint_key=student"):
        load(content, tmp_path)
    assert is_state(load(content, tmp_path, "teacher")[0])
    with pytest.raises(UserError, match=r"checkpoint_key=nope; expected one of student, teacher"):
        load(content, tmp_path, "nope")


def test_equal_sets_are_one(tmp_path: Path) -> None:
    assert is_state(load({"best": STATE, "model": {n: v.clone() for n, v in STATE.items()}}, tmp_path)[0])


WEIGHT = STATE["body.conv.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("value", "part"),
    [
        (lambda: (WEIGHT * 100).to(torch.int8), "int8, which looks quantized"),
        (lambda: (WEIGHT * 100).to(torch.uint8), "uint8, which looks quantized"),
        (lambda: torch.quantize_per_tensor(WEIGHT, 0.01, 0, torch.qint8), "qint8, which looks quantized"),
        (lambda: (WEIGHT * 100).long(), "int64 where the network has torch.float32"),
        (lambda: WEIGHT > 0, "bool where"),
        (lambda: WEIGHT.to(torch.complex64), "complex64 where"),
        (lambda: WEIGHT.to(torch.float8_e4m3fn), "float8_e4m3fn where"),
        (lambda: WEIGHT.to("meta"), "without values"),
    ],
)
def test_other_kinds_of_numbers_are_refused(value: Any, part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"body\.conv\.weight") as refusal:
        load(STATE | {"body.conv.weight": value()}, tmp_path)
    assert part in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {name: value.to(dtype) for name, value in STATE.items()}  # batch norm's counter as well, as .half() does
    loaded, remarks = load(content, tmp_path)
    assert str(dtype) in remarks[-1]
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, STATE[name], rtol=0.01, atol=0.01)
        assert value.dtype == STATE[name].dtype


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        load(STATE | {"head.bias": torch.full((3,), 1e300, dtype=torch.float64)}, tmp_path)


def test_a_mismatch_names_what_lacks_what_is_too_much_and_what_is_near(tmp_path: Path) -> None:
    content = {name.replace("body.conv", "body.conv1"): value for name, value in STATE.items()}
    with pytest.raises(UserError) as refusal:
        load({"state_dict": content | {"extra": torch.ones(1)}}, tmp_path)
    text = str(refusal.value)
    for part in ("lacks body.conv.weight", "has besides", "nearest names: body.conv1.weight for body.conv.weight"):
        assert part in text
    with pytest.raises(
        UserError, match=r"head\.weight, head\.bias; in the file \(7, 4\) for \(3, 4\).*number of classes"
    ):
        load(STATE | {"head.weight": torch.ones(7, 4), "head.bias": torch.ones(7)}, tmp_path)


def test_masks_of_pruning_are_named(tmp_path: Path) -> None:
    content = dict(STATE)
    content["head.weight_orig"] = content.pop("head.weight")
    content["head.weight_mask"] = torch.ones(3, 4)
    with pytest.raises(UserError, match=r"call prune\.remove"):
        load(content, tmp_path)


@pytest.mark.parametrize("content", [[STATE], {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, {"epoch": 3}])
def test_a_file_without_weights_says_what_it_holds(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a (list|dict with (optimizer|epoch)), without weights.* a dict of tensors"):
        load(content, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.trace(network().eval(), torch.zeros(1, 1, 8, 8)).save(tmp_path / "x.pt")
    with pytest.raises(UserError, match="a TorchScript archive"):
        load_checkpoint(network(), str(tmp_path / "x.pt"))


class Settings:
    """A class of the user's that a trainer has pickled."""


def test_a_pickled_class_is_named_and_stays_unread(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a Python object of tests\.models\.test_weights\.Settings.*never run here"):
        load({"state_dict": STATE, "config": Settings()}, tmp_path)
