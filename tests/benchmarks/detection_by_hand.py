"""Makes a small detector by hand, as a careful user does without this project: the peer to beat in object detection.

Trains a MobileNetV2-SSDlite at 320 x 320 on BCCD with torchvision's parts and the recipe of its references, prunes its
filters with torch-pruning, fine-tunes with the detection loss alone, exports with torch.onnx, quantizes with ONNX
Runtime's quantize_static and scores each step with torchmetrics on the 72 test images. Nothing is chosen on them: each
training ends with its last epoch.

    python tests/benchmarks/detection_by_hand.py --seed 0 --folder FOLDER --out FILE.json

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
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

CLASSES = ("Platelets", "RBC", "WBC")  # class 0 of the network is the background
SIZE = 320
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
SCORE, OVERLAP, CANDIDATES, DETECTIONS = 0.001, 0.55, 300, 300  # what torchvision's SSDlite keeps
ROUNDS = 100  # of the latency measurement
DATASETS = Path(__file__).resolve().parents[2].parent / "shared" / "datasets"
CPU = Path("/proc/cpuinfo")
VNNI = CPU.exists() and "vnni" in CPU.read_text()  # without it, sums of two products of bytes saturate
FILL = [123.0, 117.0, 104.0]  # ImageNet's mean colour, as in torchvision's references
SCALES, RATIOS = [0.09, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95], [1.5, 2.0]  # of the default boxes


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


class Cells(Dataset):
    """Reads a split of BCCD as pairs of an image (3, 320, 320) from 0 to 1 and {"boxes": (M, 4) xyxy, "labels": (M,)}.

    Boxes without an area, of which BCCD has two, are dropped.
    """

    def __init__(self, root: Path, split: str, augmentation: str | None) -> None:
        names = (root / f"ImageSets/Main/{split}.txt").read_text().split()
        self.images = [root / f"JPEGImages/{name}.jpg" for name in names]
        self.objects = [list(ElementTree.parse(root / f"Annotations/{name}.xml").iter("object")) for name in names]
        distort, zoom_out = v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=FILL)
        lite = [v2.RandomIoUCrop(), v2.RandomHorizontalFlip()]
        presets = {None: [], "ssdlite": lite, "ssd": [distort, zoom_out, *lite]}  # torchvision's references
        common = [v2.Resize((SIZE, SIZE)), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose(presets[augmentation] + common + [v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = Image(decode_image(str(self.images[index]), ImageReadMode.RGB))
        ends = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[float(item.findtext(f"bndbox/{end}", "")) for end in ends] for item in self.objects[index]]
        labels = [1 + CLASSES.index(item.findtext("name")) for item in self.objects[index]]
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:])
        return self.transform(image, {"boxes": boxes, "labels": torch.tensor(labels)})


class Backbone(nn.Module):
    """Returns six feature maps, of stride 16, 32 and four extra blocks, from ImageNet's MobileNetV2."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        network = mobilenet_v2()
        network.load_state_dict(torch.load(weights, weights_only=True))
        blocks = network.features
        c4, rest = blocks[14].conv[0], blocks[14].conv[1:]  # torchvision's extractor knows MobileNetV3 alone
        self.features = nn.ModuleList([nn.Sequential(*blocks[:14], c4), nn.Sequential(rest, *blocks[15:])])
        widths = pairwise((1280, 512, 256, 256, 128))
        self.extra = nn.ModuleList(_extra_block(*width, norm_layer=batch_norm) for width in widths)
        _normal_init(self.extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for block in [*self.features, *self.extra]:
            x = block(x)
            maps.append(x)
        return {str(index): feature_map for index, feature_map in enumerate(maps)}


class Core(nn.Module):
    """Returns box offsets (N, A, 4) and logits (N, A, C) of images from -1 to 1: what is pruned and exported."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Returns the batch norm of torchvision's SSDlite."""
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)


def build(weights: Path) -> SSD:
    """Returns a detector whose backbone knows ImageNet."""
    boxes = DefaultBoxGenerator([RATIOS] * 6, scales=SCALES)
    head = SSDLiteHead([576, 1280, 512, 256, 256, 128], boxes.num_anchors_per_location(), 1 + len(CLASSES), batch_norm)
    kept = {"score_thresh": SCORE, "nms_thresh": OVERLAP, "detections_per_img": DETECTIONS}
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size, classes = (SIZE, SIZE), 1 + len(CLASSES)
    detector = SSD(Backbone(weights), boxes, size, classes, head=head, topk_candidates=CANDIDATES, **kept, **scale)
    return detector.to(memory_format=torch.channels_last)


@torch.no_grad()
def normalize_as_trained(detector: SSD, images: list[Tensor]) -> None:
    """Sets the statistics of the backbone's batch norms to those of their inputs, without changing what they compute.

    The checkpoint has its batch norms folded into the convolutions (mean 0, variance 1), so that normalising by the
    statistics of a batch would compute something else than the trained network.
    """
    norms = [module for module in detector.backbone.features.modules() if isinstance(module, nn.BatchNorm2d)]

    def start_at_input(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    hooks = [norm.register_forward_pre_hook(start_at_input) for norm in norms]
    Core(detector).eval()(torch.stack(images) * 2 - 1)
    for hook in hooks:
        hook.remove()


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


@torch.inference_mode()
def default_boxes(detector: SSD) -> np.ndarray:
    """Returns the default boxes (A, 4), xyxy in pixels."""
    maps = list(detector.eval().backbone(EXAMPLE).values())
    return detector.anchor_generator(ImageList(EXAMPLE, [(SIZE, SIZE)]), maps)[0].numpy()


def decode(offsets: np.ndarray, logits: np.ndarray, anchors: np.ndarray) -> dict[str, Tensor]:
    """Returns boxes (D, 4), scores and labels (D,) by falling score, as torchvision's SSD computes them."""
    corner, sizes = anchors[:, :2], anchors[:, 2:] - anchors[:, :2]
    centers = corner + sizes / 2 + offsets[:, :2] / 10 * sizes
    half = np.exp(np.minimum(offsets[:, 2:] / 5, math.log(1000 / 16))) * sizes / 2
    boxes = np.concatenate([centers - half, centers + half], 1).clip(0, SIZE)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    scores = exponentials / exponentials.sum(1, keepdims=True)
    kept: list[tuple[float, int, int]] = []  # score, label, anchor
    for label in range(1, scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")[:CANDIDATES]
        order = order[scores[order, label] > SCORE]
        kept += [(scores[i, label], label, i) for i in order[suppress(boxes[order])]]
    kept.sort(key=lambda item: -item[0])
    best, labels, chosen = zip(*kept[:DETECTIONS], strict=True) if kept else ((), (), ())
    found = {"scores": torch.tensor(best, dtype=torch.float32), "labels": torch.tensor(labels, dtype=torch.int64)}
    return {"boxes": torch.from_numpy(boxes[list(chosen)].reshape(-1, 4)), **found}


def suppress(boxes: np.ndarray) -> list[int]:
    """Returns the positions of the boxes (B, 4), best first, that overlap no better one by more than OVERLAP."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared = sides.clip(0).prod(2)
    overlaps = shared > OVERLAP * (areas[:, None] + areas - shared)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not overlaps[i, kept].any():
            kept.append(i)
    return kept


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
