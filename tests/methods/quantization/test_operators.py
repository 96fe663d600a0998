"""The forms in which people write networks: each int8 file opens in ONNX Runtime and agrees with the simulation."""

import warnings
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators
from compress.methods.quantization.float_share import read_float_share
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.models.graph.aten_patterns import QUANTIZE, is_call
from compress.models.graph.capture import capture

SHAPE = (3, 12, 12)
IMAGES = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(3))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: object) -> nn.Conv2d:
    options = {"padding": 1 if kernel == 3 else 0} | options
    return nn.Conv2d(inputs, outputs, kernel, **options)


class Net(nn.Module):
    """A stem of 8 channels, then `body(self, x)` on (N, 8, 12, 12), with the modules that it is given."""

    def __init__(self, body: Callable[["Net", Tensor], Tensor], **modules: nn.Module | nn.Parameter):
        super().__init__()
        self.body = body
        self.stem = nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.stem(x))


def pooled(branch: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    """The branch, its mean over height and width, and the head."""
    return lambda net, x: net.head(branch(net, x).mean((2, 3)))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def several_means(net: Net, x: Tensor) -> Tensor:
    """Squeeze-and-excitation, pooling at two scales, and two heads, all by means over (H, W)."""
    x = x * net.gate(x.mean((-1, 2))).sigmoid()[:, :, None, None]
    y = net.a(x)
    both = net.wide(torch.cat([x.mean((2, 3)), y.mean(dim=(3, 2))], 1))
    return both + net.head(y.mean([2, 3], keepdim=True).flatten(1)) + net.second(x.mean((2, 3)))


def keywords(net: Net, x: Tensor) -> Tensor:
    x = F.conv2d(input=x, weight=net.a.weight, bias=net.a.bias, padding=1)
    x = torch.cat(tensors=(F.relu(input=x), F.max_pool2d(input=x, kernel_size=3, stride=1, padding=1)), dim=-3)
    return net.wide(torch.flatten(input=F.adaptive_avg_pool2d(input=x, output_size=1), start_dim=1))


def sums(net: Net, x: Tensor) -> Tensor:
    y = torch.add(x, net.a(x)) + net.scale * net.b(x)
    y = y + y.mean((2, 3), keepdim=True)
    y = torch.stack([y, x], 1).sum(1) - 0.5 * x + 1
    return net.head(torch.add(y, x, alpha=0.5).mean((2, 3)))


def in_place(net: Net, x: Tensor) -> Tensor:
    y = F.leaky_relu_(net.a(x), 0.1)
    y += x
    y = F.hardswish(y, inplace=True).mul_(0.5)
    return net.head(F.elu_(net.b(y)).mean((2, 3)))


ALL_INT8 = {
    "several means": (
        several_means,
        dict(gate=nn.Linear(8, 8), a=conv(), wide=nn.Linear(16, 5), second=nn.Linear(8, 5)),
    ),
    "keywords": (keywords, dict(a=conv(), wide=nn.Linear(16, 5))),
    "sums": (sums, dict(a=conv(), b=conv(), scale=nn.Parameter(torch.rand(1, 8, 1, 1)))),
    "in place": (in_place, dict(a=conv(), b=conv())),
    "grouped, depthwise": (pooled(lambda net, x: net.b(net.a(x).relu())), dict(a=conv(groups=2), b=conv(groups=8))),
    "conv1d": (
        lambda net, x: net.head(net.a(x.flatten(2)).relu().mean(2)),
        dict(a=nn.Sequential(nn.Conv1d(8, 8, 4, padding="same", bias=False), nn.BatchNorm1d(8))),
    ),
    "padding by name": (
        pooled(lambda net, x: net.c(net.b(net.a(x).relu()))),
        dict(
            a=nn.Sequential(conv(8, 8, (3, 4), padding="same", bias=False), nn.BatchNorm2d(8)),
            b=conv(8, 8, 3, padding="same", dilation=2),
            c=conv(8, 8, 3, padding="valid"),
        ),
    ),
    "padding of other kinds": (
        pooled(lambda net, x: net.c(net.b(net.a(x)))),
        dict(zip("abc", (conv(padding_mode=mode) for mode in ("reflect", "circular", "replicate")), strict=True)),
    ),
    "linear on tokens": (lambda net, x: net.head(net.a(tokens(x)).relu().mean(1)), dict(a=nn.Linear(8, 8))),
    "linear on (N, H, W, C)": (
        lambda net, x: net.head(net.a(x.permute(0, 2, 3, 1)).relu().mean((1, 2))),
        dict(a=nn.Linear(8, 8)),
    ),
    "linear across tokens": (
        lambda net, x: net.head(net.a(x.flatten(2).permute(2, 0, 1)).relu().mean(0)),
        dict(a=nn.Linear(8, 8)),
    ),
    "product with a parameter": (
        lambda net, x: x.mean((2, 3)) @ net.matrix,
        dict(matrix=nn.Parameter(torch.rand(8, 5))),
    ),
    "activations": (
        pooled(lambda net, x: net.layers(x)),
        dict(
            layers=nn.Sequential(
                *(layer for kind in (nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.1), nn.PReLU(8)) for layer in (conv(), kind)),
                *(layer for kind in (nn.Hardswish(), nn.Mish(), nn.ReLU6(), nn.Tanh()) for layer in (conv(), kind)),
            )
        ),
    ),
    "poolings": (
        lambda net, x: net.head(net.layers(x).amax((2, 3))),
        dict(
            layers=nn.Sequential(
                nn.AvgPool2d(3, 1, 1),
                conv(),
                nn.AvgPool2d(3, 2, ceil_mode=True),
                conv(),
                nn.MaxPool2d(3, 2, ceil_mode=True),
                conv(),
                nn.AdaptiveAvgPool2d(2),
                nn.Upsample(scale_factor=2),
                conv(),
                nn.AdaptiveMaxPool2d(2),
            )
        ),
    ),
    "norms": (
        pooled(lambda net, x: net.layers(x)),
        dict(
            layers=nn.Sequential(
                nn.BatchNorm2d(8, affine=False),
                conv(bias=False),
                nn.GroupNorm(2, 8),
                conv(),
                nn.InstanceNorm2d(8),
                conv(),
            )
        ),
    ),
}

COMPUTED = {
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "old weight norm": lambda: old_weight_norm(conv()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "old spectral norm": lambda: torch.nn.utils.spectral_norm(conv()),
    "standardised": lambda: Standardised(8, 8, 3, padding=1),
    "sum of kernels": lambda: Summed(),
}


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.large, self.small = conv(), conv(kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1))
        return F.conv2d(x, weight, self.large.bias + self.small.bias, padding=1)


def quantized(network: nn.Module, path, run_onnx, qat: bool = False, images: Tensor = IMAGES, near: float = 0.15):
    """The converted network; its file is at `path` and agrees with it, and it with the float network."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(images)
    network.eval()
    prepared = prepare(network, images[:1], 7, qat)
    calibrate(prepared, [images])
    converted = convert(prepared)
    export_onnx(converted, path, images.shape[1:])
    with torch.no_grad():
        wanted, simulated = network(images), converted(images)
    spread = wanted.std()
    assert (run_onnx(path, images) - simulated).abs().mean() < 0.02 * spread
    assert (simulated - wanted).abs().mean() < near * spread
    return converted


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", ALL_INT8)
def test_every_layer_is_int8(name: str, tmp_path, run_onnx) -> None:
    torch.manual_seed(0)
    body, modules = ALL_INT8[name]
    converted = quantized(Net(body, **modules), tmp_path / "model.onnx", run_onnx)
    share = read_float_share(tmp_path / "model.onnx", converted, [])
    assert (share.layers, share.int8_macs_percent, share.remark()) == ([], 100, None)
    assert executed_operators(tmp_path / "model.onnx")


@pytest.mark.parametrize("qat", [False, True])
def test_computed_weights_are_int8(qat: bool, tmp_path, run_onnx) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(layer for build in COMPUTED.values() for layer in (build(), nn.BatchNorm2d(8), nn.ReLU())))
    converted = quantized(
        Net(pooled(lambda net, x: net.layers(x)), layers=layers), tmp_path / "model.onnx", run_onnx, qat
    )
    share = read_float_share(tmp_path / "model.onnx", converted, [])
    assert (share.layers, share.int8_macs_percent) == ([], 100)


@pytest.mark.parametrize("build", COMPUTED.values(), ids=COMPUTED)
def test_a_computed_weight_becomes_the_layers_own(build: Callable) -> None:
    torch.manual_seed(0)
    network = Net(pooled(lambda net, x: net.layer(x)), layer=build()).eval()
    with torch.no_grad():
        network(IMAGES)  # else the weight of old weight norm has a gradient and cannot be copied
    graph = capture(network, IMAGES[:1])
    weights = [name for name, value in graph.named_parameters() if value.ndim == 4]
    assert len(weights) == 2
    assert all(name.endswith(".weight") for name in weights)
    with torch.no_grad():
        assert torch.allclose(graph(IMAGES), network(IMAGES), atol=1e-5)


def float_layers(network: nn.Module, path, run_onnx) -> dict[str, str]:
    torch.manual_seed(0)
    share = read_float_share(path, quantized(network, path, run_onnx), [])
    assert share.int8_macs_percent < 100
    return {layer.layer: layer.reason for layer in share.layers}


def test_what_stays_float_is_named_with_its_cause_and_line(tmp_path, run_onnx) -> None:
    line = r" (test_operators.py, line "
    transposed = Net(pooled(lambda net, x: net.a(x)), a=nn.ConvTranspose2d(8, 8, 2, 2))
    (reason,) = float_layers(transposed, tmp_path / "a.onnx", run_onnx).values()
    assert reason.startswith("ONNX Runtime has no int8 kernel for a transposed convolution" + line)
    dynamic = Net(pooled(lambda net, x: F.conv2d(x, net.a.weight * x.mean(), padding=1)), a=conv())
    (reason,) = float_layers(dynamic, tmp_path / "b.onnx", run_onnx).values()
    assert reason.startswith("its weight is computed from the image in the forward pass" + line)
    einsum = Net(pooled(lambda net, x: torch.einsum("nchw,oc->nohw", x, net.w)), w=nn.Parameter(torch.rand(8, 8)))
    (reason,) = float_layers(einsum, tmp_path / "c.onnx", run_onnx).values()
    assert "no int8 kernel for torch.einsum" in reason


@pytest.mark.parametrize("qat", [False, True])
def test_parts_of_a_concatenation_share_the_range_of_all(qat: bool, tmp_path, run_onnx) -> None:
    """The first part is the narrowest: a moving average that starts from it would cut off the others."""
    torch.manual_seed(0)
    wide = nn.Conv2d(8, 8, 3, padding=1)
    nn.init.uniform_(wide.bias, -8, 8)
    network = Net(lambda net, x: net.both(torch.cat([x.mean((2, 3)), net.wide(x).mean((2, 3))], 1)), wide=wide)
    network.both = nn.Linear(16, 5)
    quantized(network, tmp_path / "model.onnx", run_onnx, qat)
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {value.name: float(onnx.numpy_helper.to_array(value)) for value in graph.initializer if not value.dims}
    makers = {output: node for node in graph.node for output in node.output}
    (concatenation,) = (node for node in graph.node if node.op_type == "Concat")
    parts = [makers[name] for name in concatenation.input]
    assert [part.op_type for part in parts] == ["DequantizeLinear"] * 2
    assert len({stored[part.input[1]] for part in parts}) == 1


def test_a_moved_table_of_positions_stays_as_it_is(tmp_path, run_onnx) -> None:
    """A view of whole numbers that no operator made: attention looks up its biases by one."""
    network = Net(pooled(lambda net, x: net.a(x) + net.table[torch.arange(8).view(-1)].view(1, 8, 1, 1)), a=conv())
    network.table = nn.Parameter(torch.rand(8))
    converted = quantized(network, tmp_path / "model.onnx", run_onnx)
    sources = [node.args[0].meta["val"] for node in converted.graph.nodes if is_call(node, {QUANTIZE})]
    assert sources
    assert all(value.is_floating_point() for value in sources)


def test_attention_in_windows_is_written_as_attention(tmp_path, run_onnx) -> None:
    """Two windows of tokens (N, W, H, T, C), as Hiera and NesT have them."""

    def windows(net: Net, x: Tensor) -> Tensor:
        y = net.a(x).flatten(2).transpose(1, 2)  # (N, T, C)
        y = y.reshape(y.shape[0], 2, 1, -1, y.shape[-1])
        y = F.scaled_dot_product_attention(y, y, y).flatten(1, 3)
        return net.out(y.mean(1))

    network = Net(windows, a=conv(), out=nn.Linear(8, 5))
    quantized(network, tmp_path / "model.onnx", run_onnx)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    nodes = [node for node in capture(network, IMAGES[:1]).graph.nodes if node.target is attention]
    assert [node.meta["val"].dim() for node in nodes] == [4]


def transformers() -> dict[str, nn.Module]:
    models = pytest.importorskip("torchvision").models
    blocks = models.convnext.CNBlockConfig
    return {
        "vit": models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5),
        "swin": models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=5),
        "convnext": models.ConvNeXt([blocks(8, 16, 1), blocks(16, None, 1)], num_classes=5),
    }


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_torchvisions_transformers_are_int8_but_for_attention(name: str, tmp_path, run_onnx) -> None:
    torch.manual_seed(0)
    network = transformers()[name]
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(head.weight)  # as drawn, that of some is zero
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    converted = quantized(network, tmp_path / "model.onnx", run_onnx, images=images, near=0.3)
    share = read_float_share(tmp_path / "model.onnx", converted, [])
    assert share.remark() is None
    assert {layer.reason for layer in share.layers} <= {"it multiplies two activations"}
