"""Makes a small detector by hand, as a careful user does without this project: the peer to beat in object detection.

Trains a MobileNetV2-SSDlite at 320 x 320 on BCCD with torchvision's parts and the recipe of its references, prunes its
filters with torch-pruning, fine-tunes with the detection loss alone, exports with torch.onnx, quantizes with ONNX
Runtime's quantize_static and scores each step with torchmetrics on the 72 test images. Nothing is chosen on them: each
training ends with its last epoch.

    python -m tests.benchmarks.detection_by_hand --seed 0 --folder FOLDER --out FILE.json

By default it has the epochs, the optimizer, the augmentation and the anchors of the recipe `ssdlite_bccd_int8`;
`--optimizer sgd --lr 0.03 --augmentation ssd --batch-size 16` are those of torchvision's references.

It needs torchmetrics and faster-coco-eval besides what the project installs.
"""

import argparse
import copy
import json
import math
import statistics
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection.ssd import SSD

from tests.benchmarks.hand_made_detector import (
    EXAMPLE,
    SIZE,
    Cells,
    Core,
    build,
    decode,
    default_boxes,
    normalize_as_trained,
)

ROUNDS = 100  # of the latency measurement
DATASETS = Path(__file__).resolve().parents[2].parent / "shared" / "datasets"
CPU = Path("/proc/cpuinfo")
VNNI = CPU.exists() and "vnni" in CPU.read_text()  # without it, sums of two products of bytes saturate


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with TemporaryDirectory() as folder:
        zipfile.ZipFile(options.datasets / "bccd.zip").extractall(folder)
        options.folder = options.folder or Path(folder)
        options.folder.mkdir(parents=True, exist_ok=True)
        sets = (("train", options.augmentation), ("train", None), ("test", None))
        augmented, plain, test = (Cells(Path(folder) / "BCCD", *kind) for kind in sets)
        result = run(options, augmented, plain, test)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, default=DATASETS, help="the folder of bccd.zip and the checkpoints")
    parser.add_argument(
        "--epochs", type=int, nargs=3, default=(40, 0, 46), metavar=("TEACHER", "PRUNE", "FINETUNE"),
        help="PRUNE is also the number of pruning steps, each followed by an epoch; 0 prunes in one step (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="adamw")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument(
        "--augmentation", choices=("ssd", "ssdlite"), default="ssdlite", help="as the references' presets"
    )
    parser.add_argument("--pruning-ratio", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the training; latency is of 1 (%(default)s)")
    parser.add_argument("--teacher", type=Path, help="the teacher.pt of an earlier run, which is not trained again")
    parser.add_argument("--folder", type=Path, help="where teacher.pt and the ONNX files are kept")
    parser.add_argument("--out", type=Path, help="a json file of the table")
    return parser.parse_args()


def run(options: argparse.Namespace, train_set: Dataset, calibration: Dataset, test_set: Dataset) -> dict[str, Any]:
    """Makes the teacher, the pruned network and the int8 file, prints their table and returns it with the settings."""
    teacher_epochs, prune_epochs, finetune_epochs = options.epochs
    seconds: dict[str, float | None] = {}
    detector = build(options.datasets / "checkpoints/mobilenet_v2_imagenet_tfpad.pth")
    if options.teacher:
        detector.load_state_dict(torch.load(options.teacher, weights_only=True))
    else:
        normalize_as_trained(detector, [calibration[i][0] for i in range(0, len(calibration), 3)])
        seconds["teacher"] = train(detector, teacher_epochs, train_set, options)
        torch.save(detector.state_dict(), options.folder / "teacher.pt")
    pruned = copy.deepcopy(detector)
    for _ in prune(pruned, options.pruning_ratio, max(prune_epochs, 1)):
        train(pruned, min(prune_epochs, 1), train_set, options)
    seconds["pruned"] = train(pruned, finetune_epochs, train_set, options)

    networks = {"teacher": detector, "pruned": pruned, "int8": pruned}
    files = {name: options.folder / f"{name}.onnx" for name in networks}
    export(detector, files["teacher"])
    export(pruned, files["pruned"])
    quantize(files["pruned"], files["int8"], calibration)
    anchors, latencies = default_boxes(detector), latency_ms_p50(files)
    rows = {}
    for name, file in files.items():
        of_file = {"size_bytes": file.stat().st_size, "latency_ms_p50": latencies[name]}
        rows[name] = score(detect(file, anchors, test_set), test_set) | size(networks[name]) | of_file
    show(rows)
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    versions = {module.__name__: module.__version__ for module in (torch, onnxruntime, torch_pruning)}
    return {"rows": rows, "seconds_per_epoch": seconds, "settings": settings, "versions": versions, "vnni": VNNI}


def train(detector: SSD, epochs: int, data: Dataset, options: argparse.Namespace) -> float | None:
    """Trains as torchvision's references do, with an epoch of warm-up and a cosine, and returns seconds an epoch.

    Raises RuntimeError where the loss is not finite.
    """
    loader = DataLoader(
        data, options.batch_size, shuffle=True, drop_last=True, collate_fn=lambda items: tuple(zip(*items, strict=True))
    )
    kind = torch.optim.AdamW if options.optimizer == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(detector.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    warm_up, steps = len(loader), max(epochs * len(loader), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 1) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    began = time.perf_counter()
    for epoch in range(epochs):
        detector.train()
        total = 0.0
        for images, targets in loader:
            loss = sum(detector(list(images), list(targets)).values())
            if not loss.isfinite():
                raise RuntimeError(f"the loss of epoch {epoch} is {loss.item()}: lower --lr, which is {options.lr}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = (time.perf_counter() - began) / (epoch + 1)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(loader):.3f}, {seconds:.1f} s an epoch", flush=True)
    return (time.perf_counter() - began) / epochs if epochs else None


def prune(detector: SSD, ratio: float, steps: int) -> Iterator[None]:
    """Removes the filters of the smallest L2 norm in steps and yields after each, to be trained between them."""
    core = Core(detector).eval()
    heads = [*detector.head.classification_head.module_list, *detector.head.regression_head.module_list]
    kept = [head[1] for head in heads]  # their outputs are boxes and classes
    importance, settings = torch_pruning.importance.MagnitudeImportance(p=2), {"ignored_layers": kept, "round_to": 8}
    pruner = torch_pruning.pruner.MagnitudePruner(
        core, EXAMPLE, importance, pruning_ratio=ratio, iterative_steps=steps, **settings
    )
    for step in range(steps):
        core.eval()
        pruner.step()
        print(f"pruned, step {step + 1} of {steps}: {size(detector)}", flush=True)
        yield


def size(detector: SSD) -> dict[str, float]:
    """Returns the MACs of an image and the parameters, without the decoding of boxes."""
    macs, params = torch_pruning.utils.count_ops_and_params(Core(detector).eval(), EXAMPLE)
    return {"macs": macs, "params": params}


def export(detector: SSD, file: Path) -> None:
    """Writes the core as an ONNX file of float weights and batch 1."""
    names = {"input_names": ["images"], "output_names": ["offsets", "logits"]}
    core = copy.deepcopy(Core(detector)).eval().to(memory_format=torch.contiguous_format)
    program = torch.onnx.export(core, (EXAMPLE,), dynamo=True, verbose=False, **names)
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # the Python lines that a node comes from: a sixth of an int8 file
    onnx.save(model, file)


class Calibration(CalibrationDataReader):
    def __init__(self, images: Dataset) -> None:
        self.batches = ({"images": (images[i][0][None] * 2 - 1).numpy()} for i in range(len(images)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize(source: Path, file: Path, images: Dataset) -> None:
    """Writes the int8 file as ONNX Runtime's guide advises: prepared, QDQ, u8 activations, s8 weights per channel."""
    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    ranges = {"per_channel": True, "reduce_range": not VNNI, "extra_options": {"WeightSymmetric": True}}
    quantize_static(prepared, file, Calibration(images), quant_format=QuantFormat.QDQ, **types, **ranges)
    prepared.unlink()


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def detect(file: Path, anchors: np.ndarray, images: Dataset) -> list[dict[str, Tensor]]:
    """Returns what a file finds in each image, float files included, so that all are decoded alike."""
    runtime, found = session(file), []
    for index in range(len(images)):
        offsets, logits = runtime.run(None, {"images": (images[index][0][None] * 2 - 1).numpy()})
        found.append(decode(offsets[0], logits[0], anchors))
    return found


def score(found: list[dict[str, Tensor]], images: Dataset) -> dict[str, float]:
    """Returns COCO's mean average precisions in percent."""
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    metric.update(found, [images[i][1] for i in range(len(images))])
    scores = metric.compute()
    return {"map50": 100 * scores["map_50"].item(), "map": 100 * scores["map"].item()}


def latency_ms_p50(files: dict[str, Path]) -> dict[str, float]:
    """Returns the median milliseconds an image of each file, without decoding, on one thread and in turns."""
    sessions = {name: session(file) for name, file in files.items()}
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(-5, ROUNDS):  # the first ones warm up
        for name, runtime in sessions.items():
            began = time.perf_counter()
            runtime.run(None, {"images": image})
            if turn >= 0:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(taken) for name, taken in times.items()}


def show(rows: dict[str, dict[str, float]]) -> None:
    print("\n| | mAP50 % | mAP % | MACs | parameters | KiB | ms |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        cells = f"{row['map50']:.2f} | {row['map']:.2f} | {row['macs'] / 1e6:.0f} M | {row['params'] / 1e6:.2f} M"
        print(f"| {name} | {cells} | {row['size_bytes'] / 1024:.0f} | {row['latency_ms_p50']:.2f} |")


if __name__ == "__main__":
    main()
