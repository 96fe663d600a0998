"""The graph that ONNX Runtime executes for each family of networks: which operators, and which of them in float."""

import pytest
import torch
import torchvision

from compress.quantization import calibrate, convert, executed_operators, export_onnx, prepare, require_quantized

SHAPE = (3, 32, 32)
# Only move integers about; the rest of what is executed must be listed for each network.
SHAPING = {"Transpose", "Reshape", "Flatten", "Squeeze", "Split"}
EXECUTED = {
    "resnet18": {"QLinearConv": 20, "QLinearAdd": 8, "NhwcMaxPool": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "mobilenet_v2": {"QLinearConv": 52, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    # 28 of the sums are the gates of hardswish and of squeeze-and-excitation, 6 are residual.
    "mobilenet_v3_small": {
        "QLinearConv": 52,
        "QLinearAdd": 34,
        "QLinearMul": 28,
        "QLinearGlobalAveragePool": 10,
        "QGemm": 2,
    },
    # The last pooling makes the logits, which stay float.
    "squeezenet1_1": {
        "QLinearConv": 26,
        "NhwcMaxPool": 3,
        "QLinearConcat": 8,
        "DequantizeLinear": 1,
        "GlobalAveragePool": 1,
    },
    "shufflenet_v2_x0_5": {
        "QLinearConv": 56,
        "NhwcMaxPool": 1,
        "QLinearConcat": 16,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
    },
    "mnasnet0_5": {"QLinearConv": 52, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "efficientnet_b0": {
        "QLinearConv": 81,
        "QLinearSigmoid": 65,
        "QLinearMul": 65,
        "QLinearAdd": 9,
        "QLinearGlobalAveragePool": 17,
        "QGemm": 1,
    },
}


@pytest.mark.parametrize("name", EXECUTED)
def test_executed_operators(tmp_path, name):
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
    images = torch.randn(4, *SHAPE)
    prepared = prepare(network, images[:1], weight_bits=7, qat=False)
    calibrate(prepared, [images])
    path = tmp_path / "model.onnx"
    export_onnx(convert(prepared), path, SHAPE)
    require_quantized(path)
    executed = {operator: n for operator, n in executed_operators(path).items() if operator not in SHAPING}
    # The Pad gives the image its fourth channel.
    assert executed == {"QuantizeLinear": 1, "Pad": 1, **EXECUTED[name]}
