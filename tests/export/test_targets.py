"""Which targets may be asked for, and that a mistake about them costs no work."""

import pytest

from compress import export
from compress.config.schema import Config, ExportConfig
from compress.config.validation import check
from compress.export import TARGETS, load_target, require_installed
from compress.utils.errors import UserError


def test_the_choices_are_onnx_and_every_target() -> None:
    field = ExportConfig.__dataclass_fields__["targets"]
    assert field.metadata["choices"] == ("onnx", *TARGETS)
    assert ExportConfig().targets == ["onnx"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["onnx", "tensorrt"], r"export\.targets=tensorrt; expected one of onnx, executorch, openvino"),
        (["onnx", "openvino", "openvino"], r"export\.targets=\[onnx,openvino,openvino\]; expected each target once"),
        (["openvino"], r"expected onnx among them: .*; to mend it: set export\.targets=\[onnx,openvino\]"),
        ([], r"set export\.targets=\[onnx\]"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(Config(export=ExportConfig(targets)))


def test_a_target_whose_extra_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    require_installed(["onnx"])
    with pytest.raises(UserError, match=r'without the package openvino;.*pip install "compress\[openvino\]"'):
        require_installed(["onnx", "openvino"])


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_a_module_of_three_functions(name: str) -> None:
    module = load_target(name)
    assert all(callable(getattr(module, function)) for function in ("export", "input_shape", "open_runner"))
