"""Functions that build a network, as people have them: other arguments, keywords, sizes, and what they raise."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from compress.models.user_model import USER_MODELS, register_user_model
from compress.utils.errors import UserError
from tests import own_networks

SHAPE = (1, 8, 8)
HERE = "tests.models.test_factory"


def by_other_names(n_classes: int, in_chans: int, img_size: int = 1) -> nn.Module:
    assert (in_chans, img_size) == (1, 8)
    return own_networks.Plain(n_classes, in_chans)


def by_keywords(**settings: Any) -> nn.Module:
    return own_networks.Plain(settings["num_classes"], settings["in_channels"])


def timms_keywords(num_classes: int, **settings: Any) -> nn.Module:
    return _strict(num_classes, **settings)


def _strict(num_classes: int, in_chans: int = 3) -> nn.Module:
    return own_networks.Plain(num_classes, in_chans)


def with_sizes(num_classes: int, input_size: tuple[int, int, int] = (3, 224, 224)) -> nn.Module:
    assert input_size == (1, 8, 8)
    return own_networks.Plain(num_classes, input_size[0])


class Direct(own_networks.Plain):
    pass


ready = own_networks.Plain(3, 1)


@pytest.mark.parametrize("name", ["by_other_names", "by_keywords", "timms_keywords", "with_sizes", "Direct", "ready"])
def test_arguments_are_known_by_their_usual_names(name: str) -> None:
    register_user_model(f"{HERE}:{name}", SHAPE, 3, seed=0)
    assert USER_MODELS[f"{HERE}:{name}"].head.out_features == 3


def needs_more(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes)


def raises(num_classes: int) -> nn.Module:
    return {}["weights"]


def ends() -> nn.Module:
    raise SystemExit(3)


def fails_later(num_classes: int) -> nn.Module:
    network = own_networks.Plain(num_classes, 1)
    network.stem.register_forward_hook(lambda module, inputs, output: output.nowhere)
    return network


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("needs_more", ("needs width", "num_classes, n_classes", "give it a default")),
        ("raises", ("KeyError: 'weights'", "test_factory.py, line")),
        ("ends", ("SystemExit: 3", "test_factory.py, line")),
        ("fails_later", ("AttributeError", "nowhere", "test_factory.py, line")),
        ("SHAPE", ("which is tuple",)),
        (
            "by_othernames",
            (
                "by_other_names",
                "for example",
            ),
        ),
    ],
)
def test_what_a_function_raises_is_shown_as_the_users(name: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        register_user_model(f"{HERE}:{name}", SHAPE, 3, seed=0)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def build(:\n    pass\n", ("SyntaxError", "broken.py, line 1")),
        ("import nowhere_to_be_found\n", ("ModuleNotFoundError", "nowhere_to_be_found", "broken.py, line 1")),
        ("x = 1\nx.y\n", ("AttributeError", "broken.py, line 2")),
        ("import sys\nsys.exit('usage: ...')\n", ("SystemExit: usage", "broken.py, line 2")),
    ],
)
def test_what_a_module_raises_is_shown_as_the_users(
    text: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refusal:
        register_user_model("broken:build", SHAPE, 3, seed=0)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)
