"""How fast image files reach the network: `python tests/benchmarks/data.py loader|files|decoders`.

loader: images a second beside torchvision's reference loader, alone and as it feeds training steps. files: seconds to
the first training step of a folder of many files, at the first and the second start. decoders: the CPU time that each
library takes for an image as the network reads it.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets, transforms
from torchvision.io import decode_jpeg

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.evaluation.environment import environment
from compress.models import Architecture, build
from compress.training.malloc import keep_freed_memory
from compress.utils.cores import shorten_spinning
from compress.utils.images import Square, center_crop, opened, read, square
from tests.benchmarks.racing import PROJECT, ratio_of_medians

REFERENCE, OURS = "torchvision's loader", "ours"
SAMPLE = PROJECT.parent / "shared/datasets/imagenet_sample/imagenet_sample_1000_256.tar"
CLASSES, BATCH_SIZE, WORKERS, CROP_SHARE = 10, 64, 2, 0.875
SMALL_SIDE = 32  # pixels, of the many files
SAMPLING_S = 0.05  # between two looks at the memory

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # an epoch: images (N, C, S, S), normalised, and labels (N,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loader = commands.add_parser("loader")
    loader.add_argument("--sample", type=Path, default=SAMPLE, help="a tar of JPEGs (%(default)s)")
    loader.add_argument("--image-size", type=int, default=224)
    loader.add_argument("--step", metavar="MODEL", help="also take training steps with this network")
    loader.add_argument("--rounds", type=int, default=9)
    loader.set_defaults(run=race_loaders)
    files = commands.add_parser("files")
    files.add_argument("--files", type=int, default=100_000)
    files.set_defaults(run=time_starts)
    decoders = commands.add_parser("decoders")
    decoders.add_argument("--sample", type=Path, default=SAMPLE, help="a tar of JPEGs (%(default)s)")
    decoders.add_argument("--images", type=int, default=150)
    decoders.set_defaults(run=time_decoders)
    contender = commands.add_parser("contender")
    contender.add_argument("task")
    contender.set_defaults(run=lambda options: serve(json.loads(options.task)))
    options = parser.parse_args()
    options.run(options)


def race_loaders(options: argparse.Namespace) -> None:
    """Prints images a second and peak memory of both loaders, whose epochs take turns."""
    print(environment(torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as folder:
        count = extract(options.sample, Path(folder))
        task = {"root": folder, "image_size": options.image_size, "model": options.step}
        contenders = {name: Contender(task | {"name": name}) for name in (REFERENCE, OURS)}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(-1, options.rounds):  # the first one warms up
            for name, contender in contenders.items():
                seconds = contender.ask()["seconds"]
                if turn >= 0:
                    times[name].append(seconds)
        peaks = {name: contender.end() for name, contender in contenders.items()}
    what = f"{options.step} trained" if options.step else "loader alone"
    print(f"\n| {what}, {options.image_size} pixels | images/s | times as fast (95 %) | peak memory, MiB |")
    print("|---|---:|---:|---:|")
    for name, seconds in times.items():
        ratio, (low, high) = ratio_of_medians(times[REFERENCE], seconds)
        rate = count / statistics.median(seconds)
        print(f"| {name} | {rate:.0f} | {ratio:.2f} ({low:.2f} to {high:.2f}) | {peaks[name] / 2**20:.0f} |")


def time_starts(options: argparse.Namespace) -> None:
    """Prints seconds to the first training step and peak memory of a first and of a second start."""
    print(environment(torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_many(root, options.files)
        task = {"root": str(root), "image_size": SMALL_SIDE, "model": "resnet20", "name": OURS}
        print(f"\n| {options.files} files | s, with imports | of which load_data | peak memory, MiB |")
        print("|---|---:|---:|---:|")
        for start in ("first", "second"):
            began = time.perf_counter()
            contender = Contender(task | {"manifests": str(Path(folder) / "manifests"), "steps": 1})
            contender.ask()
            seconds = time.perf_counter() - began
            loaded_s = contender.ready["load_seconds"]
            print(f"| {start} start | {seconds:.1f} | {loaded_s:.1f} | {contender.end() / 2**20:.0f} |", flush=True)


class Contender:
    """A process that runs an epoch when it is asked to, and the peak of its memory with its children's."""

    def __init__(self, task: dict) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.data", "contender", json.dumps(task)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
        shorten_spinning()  # for both, as the command does: the process starts with this one's settings
        self._process = subprocess.Popen(command, **pipes)
        self._peak_bytes = 0
        self._watch = threading.Thread(target=self._follow_memory, daemon=True)
        self._watch.start()
        self.ready = self._answer()

    def ask(self) -> dict[str, float]:
        """Returns the seconds of an epoch. Raises RuntimeError where the process ended."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Ends the process and returns its peak memory in bytes."""
        self._process.stdin.close()
        self._process.wait()
        self._watch.join()
        return self._peak_bytes

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with {self._process.wait()}")
        return json.loads(line)

    def _follow_memory(self) -> None:
        while self._process.poll() is None:
            self._peak_bytes = max(self._peak_bytes, memory_bytes(self._process.pid))
            time.sleep(SAMPLING_S)


def memory_bytes(pid: int) -> int:
    """Returns the memory of a process and its children; a page that several share is counted once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # ended in the meantime
        return 0
    own = next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return own + sum(memory_bytes(int(child)) for child in children)


def serve(task: dict) -> None:
    """Answers each line with the seconds of an epoch, or of `steps` batches."""
    began = time.perf_counter()
    batches = (reference if task["name"] == REFERENCE else ours)(task)
    train = trainer(task["model"]) if task["model"] else lambda images, labels: None
    print(json.dumps({"load_seconds": time.perf_counter() - began}), flush=True)
    with keep_freed_memory() if task["model"] else nullcontext():  # as the training loop does
        for _ in sys.stdin:
            began = time.perf_counter()
            for step, (images, labels) in enumerate(batches(), 1):
                train(images, labels)
                if step == task.get("steps"):
                    break
            print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def ours(task: dict) -> Batches:
    config = DataConfig(
        name="imagefolder",
        root=task["root"],
        image_size=task["image_size"],
        crop_share=CROP_SHARE if task["image_size"] != SMALL_SIDE else 1.0,
        batch_size=BATCH_SIZE,
        workers=WORKERS,
        crop_padding=0,
        flip=True,
    )
    manifests = Path(task["manifests"]) if "manifests" in task else None
    data, generator = load_data(config, 0, manifests), torch.Generator().manual_seed(0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch, _ in data.train.augmented(data.train.shuffle(generator), generator, data.augmentation):
            yield batch.images, batch.labels

    return batches


def reference(task: dict) -> Batches:
    """As torchvision's references/classification: ImageFolder, PIL, transforms for each image, a DataLoader."""
    size = task["image_size"]
    steps = [
        transforms.Resize(int(size / CROP_SHARE)),
        transforms.CenterCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    images = datasets.ImageFolder(str(Path(task["root"]) / "train"), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=WORKERS)
    return lambda: iter(loader)


def trainer(model: str) -> Callable[[Tensor, Tensor], None]:
    """Returns a training step, in channels_last for both loaders."""
    torch.manual_seed(0)
    network = build(Architecture(model, "small", 3, 100)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(network(images.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def extract(sample: Path, root: Path) -> int:
    """Writes the images of a tar as train, in classes, and a few of them as val and test; returns how many."""
    with tarfile.open(sample) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        for at, member in enumerate(members):
            content = tar.extractfile(member).read()
            for split in ("train", "val", "test") if at < CLASSES else ("train",):
                folder = root / split / f"{at % CLASSES}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / Path(member.name).name).write_bytes(content)
    return len(members)


def write_many(root: Path, count: int) -> None:
    """Writes `count` small JPEGs of 100 classes, a tenth of them as test. Their contents differ behind their ends."""
    generator, contents = np.random.default_rng(0), []
    for _ in range(64):
        file = io.BytesIO()
        pixels = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SMALL_SIDE, SMALL_SIDE)).save(file, "JPEG")
        contents.append(file.getvalue())
    for at in range(count):
        folder = root / ("train" if at % 10 else "test") / f"{at // 10 % 100:02d}"
        if at < 1000:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at:07d}.jpg").write_bytes(contents[at % len(contents)] + at.to_bytes(4, "big"))


def time_decoders(options: argparse.Namespace) -> None:
    """Prints the CPU time of each way to a network's pixels, as a share of Pillow's, and how its pixels differ."""
    import simplejpeg  # no dependency: it does not pay

    torch.set_num_threads(1)
    with tarfile.open(options.sample) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        sample = [tar.extractfile(member).read() for member in members[: options.images]]
    plain = Square(224, CROP_SHARE)
    print("| files | way | CPU ms an image | of Pillow's | pixels differ by: mean, most |\n|---|---|---:|---:|---:|")
    for title, contents, how in (
        ("256x256, cropped", sample, plain),
        ("500x375, resized and cropped", [enlarged(content) for content in sample], plain),
        (
            "500x375, resized to its shorter side",
            [enlarged(content) for content in sample],
            replace(plain, crop_share=1),
        ),
    ):
        ways = {
            "Pillow": pillow,
            "torchvision.io": lambda content, how: square(
                decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy(), how
            ),
            "simplejpeg": lambda content, how: square(simplejpeg.decode_jpeg(content, "RGB"), how),
            "Pillow's draft": draft,
            "simplejpeg, scaled": lambda content, how: square(
                simplejpeg.decode_jpeg(content, "RGB", min_height=shorter(how), min_width=shorter(how)), how
            ),
        }
        print_decoders(title, contents, how, ways)


def print_decoders(title: str, contents: list[bytes], how: Square, ways: dict[str, Callable]) -> None:
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(7):
        for name, way in ways.items():
            began = time.process_time()
            for content in contents:
                way(content, how)
            spent[name].append(1000 * (time.process_time() - began) / len(contents))
    for name, way in ways.items():
        off = np.stack([np.abs(way(content, how).astype(int) - pillow(content, how)) for content in contents])
        cost, share = statistics.median(spent[name]), ratio_of_medians(spent[name], spent["Pillow"])[0]
        print(f"| {title} | {name} | {cost:.2f} | {share:.2f} | {off.mean():.1f}, {off.max()} |", flush=True)


def pillow(content: bytes, how: Square) -> np.ndarray:
    with opened(io.BytesIO(content), "sample") as image:
        return read(image, 3, how, "sample")


def draft(content: bytes, how: Square) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (shorter(how), shorter(how)))
        return np.asarray(center_crop(image.convert("RGB"), how))


def shorter(how: Square) -> int:
    return int(how.size / how.crop_share)


def enlarged(content: bytes) -> bytes:
    """Returns a JPEG as a photo of 500x375 pixels."""
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=92
    )
    return file.getvalue()


if __name__ == "__main__":
    main()
