"""Predicting with a run's file: the classes that the pipeline measured, from image files, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress
from compress.data.image_folder import Files
from compress.launch.commands.predict import main
from compress.pipeline.run import run_pipeline
from compress.utils.errors import UserError
from compress.utils.files import ONNX, SPEC, STAGE, read_json
from compress.utils.images import Square, center_crop, preprocess
from tests.conftest import make_tiny_config

PIXELS = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    config = make_tiny_config(tiny_npz)
    config.stages = ["teacher", "quantize"]
    run_pipeline(config, folder / "run")
    return folder / "run"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Of several sizes and modes, as users have them."""
    generator = np.random.default_rng(0)
    paths = []
    for number, (shape, mode) in enumerate([((16, 16), "L"), ((40, 25, 3), "RGB"), ((20, 33, 4), "RGBA")]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode).save(path)
        paths.append(str(path))
    return paths


def test_probabilities_are_those_of_the_file(run: Path, images: list[str]) -> None:
    from compress.export.onnx_session import open_session

    classifier = compress.load(run)
    described = read_json(run / "02_quantize" / SPEC)
    found = classifier.predict([*images, Image.open(images[0])])
    batch = np.stack([preprocess(Image.open(path), described["input"]) for path in images])
    logits = open_session(run / "02_quantize" / ONNX, 1).run(None, {"image": batch})[0]
    wanted = torch.from_numpy(logits).softmax(1)
    for row, expected in zip(found, wanted, strict=False):
        assert list(row.values()) == sorted(row.values(), reverse=True)
        assert [row[name] for name in described["classes"]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[3] == found[0]


def test_a_file_is_read_as_in_training(images: list[str]) -> None:
    """A folder of images, decoded for training, and the same file given to the classifier."""
    source = Files([Path(images[1])], torch.zeros(1, dtype=torch.int64), Square(PIXELS), 0)
    ((pixels, _),) = source.stream([torch.tensor([0])])
    described = {"shape": [3, PIXELS, PIXELS], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    mean, std = (torch.tensor(described[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    found = preprocess(Image.open(images[1]), described)
    assert np.allclose(found, ((pixels / 255 - mean) / std)[0].numpy(), atol=1e-6)
    assert center_crop(Image.open(images[1]), Square(PIXELS)).size == (PIXELS, PIXELS)


def test_one_stage_can_be_named(run: Path, images: list[str]) -> None:
    assert compress.load(run).path == run / "02_quantize" / ONNX
    assert compress.load(run / "01_teacher").path == run / "01_teacher" / ONNX


def test_the_command_prints_names_and_percents(
    run: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *images]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"with {run / '02_quantize' / ONNX}"
    assert [line.split()[0] for line in lines] == images
    best = next(iter(compress.load(run).predict(images[:1])[0].items()))
    assert lines[0].split()[1:3] == [best[0], f"{100 * best[1]:.2f}"]


def test_mistakes_are_one_line(
    run: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for arguments in ([str(tmp_path), images[0]], [str(run), str(text)], [str(run), str(tmp_path / "absent.png")]):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("compress: received")
        assert "expected" in line


@pytest.mark.parametrize("option", ["--min-score=0.3", "--draw=drawn", "--video=0"])
def test_options_of_boxes_are_refused(
    run: Path, images: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "video" in option else images
    assert main([str(run), *given, option]) == 2
    assert f"{option.split('=')[0]} with" in capsys.readouterr().err


def test_a_changed_file_is_not_used(run: Path, tmp_path: Path) -> None:
    stage = tmp_path / "02_quantize"
    stage.mkdir()
    for name in (ONNX, SPEC, STAGE):
        (stage / name).write_bytes((run / "02_quantize" / name).read_bytes())
    assert compress.load(stage).path == stage / ONNX
    content = bytearray((stage / ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (stage / ONNX).write_bytes(content)
    with pytest.raises(UserError, match="changed since it was written"):
        compress.load(tmp_path)


def test_neither_torch_nor_hydra_is_imported(run: Path, images: list[str]) -> None:
    code = (
        "import sys, compress\n"
        f"compress.load({str(run)!r}).predict([{images[0]!r}])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'hydra', 'onnx'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
