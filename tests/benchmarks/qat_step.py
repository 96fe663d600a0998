"""What a step of quantization-aware training costs in float steps: `python tests/benchmarks/qat_step.py`.

All take turns in one process on the same batch, and a ratio is one of medians. No step is an optimizer's: that is the
same for all.
"""

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torchao.quantization.pt2e.fake_quantize import FusedMovingAvgObsFakeQuantize
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from compress.evaluation.environment import environment
from compress.methods.quantization.fake_quantize import RuntimeFakeQuantize
from compress.methods.quantization.pt2e import calibrate, freeze_batch_norm, freeze_observers, prepare
from compress.models import Architecture, build

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenet_v2"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too; minutes a network")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # torch.compile tells of every graph break
    print(environment(torch.get_num_threads()))
    print("\n| network | step | ms | times float |\n|---|---|---:|---:|")
    for name in options.networks:
        rows = race(steps(name, options.batch_size, options.compile), options.rounds)
        for label, milliseconds in rows.items():
            print(f"| {name} | {label} | {milliseconds:.0f} | {milliseconds / rows['float']:.2f} |", flush=True)


def steps(name: str, batch_size: int, compiled: bool) -> dict[str, Step]:
    """A label -> one forward and backward pass of that form of the network."""
    torch.manual_seed(0)
    network = build(Architecture(name, "small", 3, 10)).train()
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,))

    def ours() -> nn.Module:
        prepared = prepare(network, images[:1], 7, qat=True)
        calibrate(prepared, [images])
        return prepared.train()

    folded, settled = ours(), ours()
    freeze_batch_norm(folded)
    freeze_batch_norm(settled)
    freeze_observers(settled)
    forms = {
        "float": network,
        "torchao's X86InductorQuantizer": torchao(network, images),
        "with torch's fused fake quantization": with_torchs_operator(ours()),
        "ours": ours(),
        "ours, batch norm frozen": folded,
        "ours, ranges frozen too": settled,
    }
    if compiled:
        # torchao's raises there: inductor is told a wrong size of its operator's scale. Ours, where statistics move,
        # falls apart at each fake quantization.
        for label in ("float", "ours, ranges frozen too"):
            forms[f"{label}, compiled"] = torch.compile(copy.deepcopy(forms[label]))
    return {label: step(form, images, labels) for label, form in forms.items()}


def step(form: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """Forward and backward of `form` on `images` (N, C, H, W)."""
    form.to(memory_format=torch.channels_last)

    def run() -> None:
        form.zero_grad(set_to_none=True)
        F.cross_entropy(form(images), labels).backward()

    return run


def torchao(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """What its documentation shows for quantization-aware training on x86."""
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    return prepare_qat_pt2e(capture_for_training(network, images), quantizer)


def capture_for_training(network: nn.Module, images: torch.Tensor) -> nn.Module:
    return torch.export.export(network.train(), (images,)).module()


def with_torchs_operator(prepared: nn.Module) -> nn.Module:
    """Ours, its activations rounded by torch's fused operator instead."""
    for module in prepared.modules():
        if type(module) is RuntimeFakeQuantize:
            module.forward = FusedMovingAvgObsFakeQuantize.forward.__get__(module)
    return prepared


def race(contenders: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median milliseconds of each: they take turns, after two turns of warm-up."""
    times: dict[str, list[float]] = {label: [] for label in contenders}
    for turn in range(-2, rounds):
        for label, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn == -2:
                print(f"<!-- {label}: first step {time.perf_counter() - start:.1f} s -->", flush=True)
            if turn >= 0:
                times[label].append(1000 * (time.perf_counter() - start))
    return {label: statistics.median(values) for label, values in times.items()}


if __name__ == "__main__":
    main()
