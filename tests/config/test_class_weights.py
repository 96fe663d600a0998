"""Class weights as they are typed: a word, or a number above 0 for each class."""

from dataclasses import replace

import pytest

from compress.config.schema import Config, TrainConfig
from compress.config.validation import check
from compress.pipeline.compute import prepare
from compress.utils.errors import UserError
from tests.config.test_config import composed


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("none", "none"), ("balanced", "balanced"), ("[1,5,2]", [1, 5, 2]), ("[0.5,1]", [0.5, 1])],
)
def test_words_and_numbers_are_taken(typed: str, expected: str | list[float]) -> None:
    config = composed("recipe=mobilenet_int8", f"train.class_weights={typed}")
    check(config)
    assert config.train.class_weights == expected


@pytest.mark.parametrize("typed", ["even", "3", "[]", "[1,a]", "[1,-2]", "[1,0]", "null"])
def test_other_weights_are_refused(typed: str) -> None:
    with pytest.raises(UserError, match="a number above 0 for each class"):
        check(composed("recipe=mobilenet_int8", f"train.class_weights={typed}"))


def test_there_are_as_many_weights_as_classes(tiny_config: Config) -> None:
    config = replace(tiny_config, train=TrainConfig(class_weights=[1.0, 5.0]))
    with pytest.raises(UserError, match=r"train\.class_weights with 2 numbers; expected one for each of the 3 classes"):
        prepare(config)
