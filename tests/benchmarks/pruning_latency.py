"""Prunes to a latency in ONNX Runtime: is it met, and is accuracy better than by a share of the MACs?

    python -m tests.benchmarks.pruning_latency --datasets FOLDER --networks resnet56 --precision float
    python -m tests.benchmarks.pruning_latency --datasets FOLDER --networks mobilenet_v2 --shares 0.9 0.8
    python -m tests.benchmarks.pruning_latency --datasets FOLDER --networks resnet56 --filters 1 0.95 0.75 0.5

Two paths spread the cut by sensitivity, one by what a microsecond costs and one by what a MAC costs. Both stop at the
same predicted latency; their files are then timed, and scored in float after the refit, without training. Run it on an
idle machine: times of layers that were measured beside another program are kept, and are wrong. `--filters` times files
in which all layers keep the same share of their filters, each in turns with the float teacher's file.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from compress.config.schema import MeasureConfig
from compress.config.stage_settings import PruneConfig, QuantizeConfig
from compress.evaluation.flops import count_cost
from compress.evaluation.shipped_file import ShippedFile
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cost import Cost
from compress.methods.pruning.cut import sensitivity_path
from compress.methods.pruning.filters import known_scores
from compress.methods.pruning.importance import score_channels
from compress.methods.pruning.limits import Whole, currency
from compress.methods.pruning.reconstruction import reconstruct
from compress.methods.pruning.sensitivity import Sensitivity, measure_sensitivity
from compress.methods.pruning.target import Limit, meet_limits
from compress.methods.pruning.trials import SENSITIVITY_TEMPERATURE
from compress.models.layer_calls import layer_calls
from compress.models.widths import read_widths
from compress.tasks import CLASSIFICATION
from compress.training.context import Shipping
from tests.benchmarks.networks import Subject, load_subject

_REFIT_IMAGES = {"resnet56": 512, "mobilenet_v2": 128}


@dataclass
class Bench:
    """A network with what a cut needs, and its file as it ships."""

    subject: Subject
    prunable: PrunableNetwork
    scores: list[torch.Tensor]
    sensitivity: Sensitivity
    shipped: ShippedFile


def main() -> int:
    """Prints a Markdown table with a row a network, share of the latency and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder of the shared data sets")
    parser.add_argument("--networks", nargs="+", default=["resnet56", "mobilenet_v2"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5], help="of the whole file's latency")
    parser.add_argument("--filters", nargs="+", type=float, default=[], help="shares that stay, in place of a latency")
    parser.add_argument("--precision", choices=("int8", "float"), default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache/latency"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.filters:
        _print_filters(options)
        return 0
    print("| network | asked ms | spread by | predicted | measured | of the asked | MACs % | top-1 % | lead (95 %) |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for name in options.networks:
        bench = _prepare(load_subject(name, options.datasets), options)
        for share in options.shares:
            for row in _rows(bench, share):
                print(row, flush=True)
    return 0


def _print_filters(options: argparse.Namespace) -> None:
    """Prints a row for each network and share of the filters that stays in every layer."""
    print("| network | filters left % | MACs % | ms | faster than the float teacher |")
    print("|---|---:|---:|---:|---:|")
    for name in options.networks:
        subject = load_subject(name, options.datasets)
        prunable = PrunableNetwork(subject.network, subject.calibration[:1], 1)
        scores = known_scores(prunable, score_channels(prunable, "l1"))
        shipped = _shipped(subject, options)
        whole = count_cost(subject.network, subject.shape)[1]
        for share in options.filters:
            network, _ = prunable.pruned_copy([max(1, round(share * one.channels)) for one in prunable.groups], scores)
            found, macs = shipped.measure(network), count_cost(network.eval(), subject.shape)[1]
            cells = f"{100 * macs / whole:.1f} | {found['latency_ms']:.3f} | {found['speedup']:.2f}x"
            print(f"| {name} | {100 * share:g} | {cells} |", flush=True)


def _shipped(subject: Subject, options: argparse.Namespace) -> ShippedFile:
    quantize = QuantizeConfig(mode="ptq") if options.precision == "int8" else None
    shipping = Shipping(quantize, MeasureConfig(repetitions=200), options.threads, options.cache)
    return ShippedFile(subject.network, subject.calibration, shipping, CLASSIFICATION.files)


def _prepare(subject: Subject, options: argparse.Namespace) -> Bench:
    network, images = subject.network, subject.calibration
    prunable = PrunableNetwork(network, images[:1], PruneConfig().round_to)
    scores = known_scores(prunable, score_channels(prunable, "l1"))
    free = [True] * len(scores)
    distance = partial(CLASSIFICATION.distance, temperature=SENSITIVITY_TEMPERATURE)
    sensitivity = measure_sensitivity(prunable, scores, free, images[:256], distance)
    return Bench(subject, prunable, scores, sensitivity, _shipped(subject, options))


def _rows(bench: Bench, share: float) -> list[str]:
    prunable, network = bench.prunable, bench.prunable.network
    calls = layer_calls(network, prunable.example)
    latency = bench.shipped.cost("latency_ms", network, calls)
    params, macs = count_cost(network, bench.subject.shape)
    whole = Whole(read_widths(network), macs, params)
    asked_ms = share * latency.of(whole.widths)
    start = [group.channels for group in prunable.groups]
    costs: dict[str, Cost] = {"MACs": currency([], prunable, whole), "microseconds": latency}
    found: dict[str, tuple[nn.Module, list[int]]] = {}
    for name, cost in costs.items():
        path = sensitivity_path(prunable, bench.sensitivity, start, cost)
        left = meet_limits(path, [Limit("latency_ms", asked_ms, latency)], prunable.widths).left
        found[name] = (_refitted(bench, left), left)
    logits = {name: _logits(bench, pruned) for name, (pruned, _) in found.items()}
    rows = []
    for name, (pruned, left) in found.items():
        measured = bench.shipped.measure(pruned)["latency_ms"]
        predicted = latency.of(prunable.widths(left))
        macs_share = whole.costs(prunable, prunable.widths(left))["macs_share"]
        top1 = CLASSIFICATION.score(logits[name], bench.subject.labels)
        lead, (low, high) = CLASSIFICATION.difference(logits[name], logits["MACs"], bench.subject.labels)
        rows.append(
            f"| {bench.subject.name} | {asked_ms:.3f} | {name} | {predicted:.3f} | {measured:.3f} | "
            f"{100 * measured / asked_ms:.0f} % | {100 * macs_share:.1f} | {top1:.2f} | "
            + ("- |" if name == "MACs" else f"{lead:+.2f} ({low:+.2f} to {high:+.2f}) |")
        )
    return rows


def _refitted(bench: Bench, left: list[int]) -> nn.Module:
    network, kept = bench.prunable.pruned_copy(left, bench.scores)
    images = bench.subject.calibration[: _REFIT_IMAGES[bench.subject.name]]
    reconstruct(network, bench.prunable.network, kept, images)
    return network.eval()


@torch.no_grad()
def _logits(bench: Bench, network: nn.Module) -> torch.Tensor:
    return torch.cat([network(images) for images in bench.subject.images.split(64)])


if __name__ == "__main__":
    sys.exit(main())
