"""Reads the same images from folders, a table and shards: is accuracy the same, and how soon does training start?

    python tests/benchmarks/data_formats.py accuracy
    python tests/benchmarks/data_formats.py shards [--shards 100 --images 1000]

`accuracy` takes ImageNet's MobileNetV2 through each format. `shards` writes shards of small images, starts a training
twice, kills one in the middle of an epoch and goes on with it.
"""

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.config.compose import compose_recipe
from compress.pipeline.experiment import run_experiment
from compress.utils.files import METRICS, MODEL, digest_of_file, read_json, training_file
from tests.benchmarks.headlines import DATASETS, ROOT

SPLITS = ("train", "val", "test")
IMAGENET = ("data.image_size=224", "data.crop_share=0.875", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]")


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "shards"))
    parser.add_argument("--datasets", type=Path, default=DATASETS, help="the folder of the data and the checkpoints")
    parser.add_argument("--shards", type=int, default=100, help="shards of train")
    parser.add_argument("--images", type=int, default=1000, help="images a shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(accuracy(options, Path(name)) if options.what == "accuracy" else shards(options, Path(name)))
    return 0


def accuracy(options: argparse.Namespace, folder: Path) -> str:
    """Returns a table of the top-1 that each format measures, of 1,000 images, one a class."""
    write_tree(options.datasets / "imagenet_sample" / "imagenet_sample_1000_256.tar", folder / "tree")
    write_table(folder / "tree", folder / "all.csv")
    write_shards(folder / "tree", folder / "shards")
    places = {"imagefolder": folder / "tree", "csv": folder / "all.csv", "webdataset": folder / "shards"}
    lines = ["| data | top-1 % of model.onnx |", "|---|---:|"]
    checkpoint = options.datasets / "checkpoints" / "mobilenet_v2_imagenet_tfpad.pth"
    for name, place in places.items():
        words = [f"data={name}", f"data.root={place}", *IMAGENET, "stages=[teacher]", "teacher.epochs=0"]
        config = compose_recipe("mobilenet_int8", [*words, f"teacher.checkpoint={checkpoint}", "cache.enabled=false"])
        run_experiment(config, folder / name)
        lines.append(f"| {name} | {read_json(folder / name / '01_teacher' / METRICS)['deployed_top1_percent']:.2f} |")
    return "\n".join(lines)


def write_tree(tar: Path, root: Path) -> None:
    """Writes the images of the tar file into each split, a folder a class; their sorted names number the classes."""
    with tarfile.open(tar) as archive:
        archive.extractall(root / "all", filter="data")
    for file in (root / "all").iterdir():
        for split in SPLITS:
            (root / split / file.stem).mkdir(parents=True)
            os.link(file, root / split / file.stem / file.name)
    shutil.rmtree(root / "all")


def write_table(tree: Path, file: Path) -> None:
    """Writes a row for each image of a tree of folders."""
    rows = [
        f"{path.relative_to(file.parent)},{path.parent.name},{split}"
        for split in SPLITS
        for path in images(tree / split)
    ]
    file.write_text("\n".join(["path,class,split", *rows]) + "\n")


def write_shards(tree: Path, root: Path) -> None:
    """Writes four shards of each split of a tree of folders."""
    root.mkdir()
    for split in SPLITS:
        paths = images(tree / split)
        for number in range(4):
            with tarfile.open(root / f"{split}-{number:03}.tar", "w") as archive:
                for path in paths[number::4]:
                    archive.add(path, path.name)
                    add(archive, f"{path.stem}.txt", path.parent.name.encode())


def images(folder: Path) -> list[Path]:
    """Returns the files in the folders of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shards(options: argparse.Namespace, folder: Path) -> str:
    """Returns a table of the seconds to the first step, and whether a run that was killed ends the same."""
    write_small(folder / "small", options.shards, options.images)
    whole, killed = folder / "whole", folder / "killed"
    each_step = ["train.checkpoint_minutes=0"]
    first_s, second_s = (kill_in_training(each_step, folder / name, folder) for name in ("first", "second"))
    settings = ["train.checkpoint_minutes=0.02", "cache.enabled=false"]
    run(settings, whole, folder)
    kill_in_training(settings, killed, folder, after_s=3)
    run(settings, killed, folder)
    same = digest_of_file(whole / "01_teacher" / MODEL) == digest_of_file(killed / "01_teacher" / MODEL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    ended = "the same weights" if same else "OTHER WEIGHTS"
    return (
        "| shards | images | first start s | second start s | peak MB of a process | killed and gone on with |\n"
        "|---:|---:|---:|---:|---:|---|\n"
        f"| {options.shards} | {options.shards * options.images} | {first_s:.1f} | {second_s:.1f} "
        f"| {peak / 1e6:.0f} | {ended} |"
    )


def write_small(root: Path, count: int, size: int) -> None:
    """Writes `count` shards of train and one of val and test, of `size` JPEG files of 32 pixels in ten classes."""
    root.mkdir()
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(64):
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(out, "jpeg")
        contents.append(out.getvalue())
    names = [f"train-{number:04}" for number in range(count)] + ["val-0", "test-0"]
    for name in names:
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for at in range(size):
                add(archive, f"{at:06}.jpg", contents[at % 64])
                add(archive, f"{at:06}.cls", str(at % 10).encode())


def command(settings: list[str], run_folder: Path, folder: Path) -> list[str]:
    """Returns a command line that trains a small network on the shards."""
    words = ["recipe=mobilenet_int8", "data=webdataset", f"data.root={folder / 'small'}", "data.image_size=32"]
    words += [
        "teacher.model=resnet8",
        "teacher.epochs=1",
        "stages=[teacher]",
        f"cache.dir={folder / 'cache'}",
        "data.batch_size=128",
    ]
    return [sys.executable, "-m", "compress", *words, *settings, f"hydra.run.dir={run_folder}"]


def run(settings: list[str], run_folder: Path, folder: Path) -> None:
    """Runs the command to its end. Raises CalledProcessError where it fails."""
    subprocess.run(command(settings, run_folder, folder), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def kill_in_training(settings: list[str], run_folder: Path, folder: Path, after_s: float = 0) -> float:
    """Starts the command and kills it `after_s` after its first saved step; returns the seconds to that step."""
    start = time.perf_counter()
    process = subprocess.Popen(command(settings, run_folder, folder), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not training_file(run_folder / "01_teacher").is_file():
        if process.poll() is not None:
            raise RuntimeError(f"{run_folder} ended before its first step")
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    time.sleep(after_s)
    process.kill()
    if process.wait() == 0:
        raise RuntimeError(f"{run_folder} ended before it was killed: more images are needed")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
