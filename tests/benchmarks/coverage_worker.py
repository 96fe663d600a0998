"""One network through all stages, untrained: `python -m tests.benchmarks.coverage_worker NAME FILE` writes its row."""

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.config.stage_settings import PruneConfig
from compress.evaluation.flops import count_cost
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import INT8_LAYERS, executed_operators, inspect_quantization
from compress.methods.pruning.reconstruction import reconstruct, skipped_layers
from compress.methods.quantization.cpu_target import WEIGHT_BITS, choose_target
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.methods.restore import restore_float
from compress.models import Architecture
from compress.models.artifact import Artifact, Spec, write_model
from compress.models.user_model import USER_MODELS
from compress.models.widths import read_widths
from compress.utils.cpu import cpu_flags
from compress.utils.errors import UserError
from compress.utils.files import write_json
from tests.benchmarks.coverage_networks import CLASSES, build, images_for
from tests.methods.pruning.plain_cut import prune_filters

_IMAGES = 32


def main() -> int:
    """Writes the row; 0 also for a network that is refused."""
    name, file = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name, "status": "through"}
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as place:
            _take_through(name, Path(place), row)
    except UserError as error:
        row |= {"status": "refused", "problem": str(error)}
    except Exception as error:  # the row says so
        first = next(iter(str(error).strip().splitlines()), "")
        row |= {"status": "fault", "problem": f"{type(error).__name__}: {first}"}
    write_json(file, row | {"seconds": time.monotonic() - started})
    return 0


def _take_through(name: str, place: Path, row: dict[str, Any]) -> None:
    with _stage("build", row):
        torch.manual_seed(0)
        network, pixels = build(name)
        row["pixels"], shape = pixels, (3, pixels, pixels)
        images = images_for(pixels, _IMAGES)
        _settle(network, images)
        row["params"], row["macs"] = count_cost(network, shape)
    with _stage("prune", row):
        USER_MODELS[name] = copy.deepcopy(network)
        pruned = prune_filters(network, images[:1], PruneConfig(ratio=0.5))
        if pruned.kept:
            reconstruct(network, USER_MODELS[name], pruned.kept, images)
        row["reasons"] = sorted({layer["reason"] for layer in pruned.left_out})
        row["skipped_layers"] = len(skipped_layers(network, USER_MODELS[name], images[:1]))
        row["params_left"], row["macs_left"] = count_cost(network, shape)
    with _stage("restore", row):
        _restore(name, network, images, place)
    with _stage("export", row):
        export_onnx(network, place / "float.onnx", shape)
        _require_exact(_run(place / "float.onnx", images), network, images)
    with _stage("quantize", row):
        bits = WEIGHT_BITS[choose_target("auto", cpu_flags())]
        prepared = prepare(network, images[:1], bits, qat=False)
        calibrate(prepared, images.split(8))
        export_onnx(convert(prepared), place / "int8.onnx", shape)
    with _stage("run", row):
        row |= _compare(_run(place / "int8.onnx", images), _outputs(network, images))
        row["layers"] = len(inspect_quantization(place / "int8.onnx"))
        executed = executed_operators(place / "int8.onnx")
        row["int8_layers"] = sum(executed[operator] for operator in INT8_LAYERS)
    row["stage"] = None


@contextmanager
def _stage(name: str, row: dict[str, Any]) -> Iterator[None]:
    row["stage"] = name
    yield


def _settle(network: nn.Module, images: Tensor) -> None:
    """Gives batch norm the statistics of the images, as training does: by first weights activations grow or vanish."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _restore(name: str, network: nn.Module, images: Tensor, place: Path) -> None:
    architecture = Architecture(name, "imagenet", 3, CLASSES)
    spec = Spec(asdict(architecture), [str(number) for number in range(CLASSES)], {})
    write_model(Artifact(network, spec.changed("prune", widths=read_widths(network))), place)
    _require_same(_outputs(restore_float(place), images), _outputs(network, images))


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(chunk) for chunk in images.split(8)])


def _run(file: Path, images: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"image": x.numpy()})[0]) for x in images.split(8)])


def _require_same(found: Tensor, wanted: Tensor) -> None:
    share = _noise_share(found, wanted)
    if not share < 1e-2:
        raise ValueError(f"received outputs that differ by {100 * share:.2f} % of their spread; expected the same")


def _require_exact(found: Tensor, network: nn.Module, images: Tensor) -> None:
    """Raises ValueError where `found` is further from float64's outputs than 1 %, and than twice torch's float32 is.

    A refit on few images may leave weights whose sums round badly, in torch as in ONNX Runtime.
    """
    exact = _outputs(copy.deepcopy(network).double(), images.double()).float()
    own, share = _noise_share(_outputs(network, images), exact), _noise_share(found, exact)
    if not share < max(1e-2, 2 * own):
        raise ValueError(
            f"received outputs that differ from float64's by {100 * share:.2f} % of their spread; expected at most "
            f"{200 * own:.2f} %, twice what torch's float32 does"
        )


def _compare(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Classes are compared behind the mean over the images: an untrained network gives one class for all of them."""
    classes = [(x - x.mean(0)).argmax(1) for x in (found, wanted)]
    agreement = 100 * (classes[0] == classes[1]).float().mean().item()
    return {"agreement_percent": agreement, "noise_percent": 100 * _noise_share(found, wanted)}


def _noise_share(found: Tensor, wanted: Tensor) -> float:
    """The root mean square of the difference, as a share of the outputs' spread over the images."""
    spread = (wanted - wanted.mean(0)).square().mean().sqrt()
    return ((found - wanted).square().mean().sqrt() / spread.clamp_min(1e-6 * wanted.abs().mean() + 1e-12)).item()


if __name__ == "__main__":
    sys.exit(main())
