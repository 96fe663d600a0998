"""The figures of a file with exits: those of test images in their mix, taken by the real measuring process."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.config.schema import MeasureConfig
from compress.data.dataset import Memory, Split
from compress.evaluation.benchmark import time_and_memory
from compress.evaluation.exits import evaluate_exits, exit_benchmark
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators
from compress.models.artifact import Artifact, Spec
from compress.utils.latency import headline_latency_ms
from tests.early_exits import SHAPE, SHAPES, mixed

QUICK = MeasureConfig(batch_size=4, repetitions=3)
CPU = torch.device("cpu")
RECORD = {
    "exits": [asdict(shape) for shape in SHAPES],
    "ends": [{"after": "layer1"}, {"after": "layer2"}, {"after": None}],
    "macs": [30, 60, 110],
    "settings": {},
}


@pytest.fixture(scope="module")
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (30,), generator=generator)
    half = torch.full((1, 1, 1, 1), 0.5)
    return Split(Memory(pixels, labels), torch.arange(30), half, half, batch_size=8)


@pytest.fixture(scope="module")
def made(split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    network = mixed(torch.cat([images for images, _ in split.batches()]))
    spec = Spec({}, ["a", "b", "c"], {}).changed("early_exit", **RECORD)
    path = tmp_path_factory.mktemp("exits") / "model.onnx"
    export_onnx(network, path, SHAPE, branches=True)
    return Artifact(network, spec), path


@torch.no_grad()
def test_who_leaves_where_and_how_often_right(made: tuple[Artifact, Path], split: Split) -> None:
    artifact, path = made
    found = evaluate_exits(path, artifact, split, CPU, threads=1)
    images = torch.cat([images for images, _ in split.batches()])
    ends, places = artifact.network.ends(images), found.tensors["exit_index"]
    counts = Counter(places.tolist())
    assert counts == {0: 10, 1: 10, 2: 10}
    assert found.mean_macs == pytest.approx((30 + 60 + 110) / 3)
    for at, row in enumerate(found.figures["ends"]):
        right = ends[at].argmax(1)[places == at] == split.labels[places == at]
        assert (row["images"], row["macs"], row["after"]) == (10, RECORD["macs"][at], RECORD["ends"][at]["after"])
        assert row["share_percent"] == pytest.approx(100 / 3)
        assert row["top1_percent"] == pytest.approx(100 * right.double().mean().item())
    chosen = torch.stack([ends[place][at] for at, place in enumerate(places.tolist())]).argmax(1) == split.labels
    alone = ends[2].argmax(1) == split.labels
    assert found.figures["to_the_end_top1_percent"] == pytest.approx(100 * alone.double().mean().item())
    points = 100 * (chosen.double().mean() - alone.double().mean()).item()
    assert found.figures["delta_points_to_the_end"] == pytest.approx(points)


def test_easy_images_leave_first_and_hard_ones_last(made: tuple[Artifact, Path], split: Split) -> None:
    tensors = evaluate_exits(made[1], made[0], split, CPU, threads=1).tensors
    places = tensors["exit_index"]
    assert (places[tensors["easy_index"]] == 0).all()
    assert (places[tensors["hard_index"]] == 2).all()
    easy, hard = tensors["easy_confidence"], tensors["hard_confidence"]
    assert torch.equal(easy, easy.sort(descending=True).values)
    assert torch.equal(hard, hard.sort().values)
    assert easy.min() > hard.max()
    wanted = split.pixels.images[tensors["easy_index"]].permute(0, 2, 3, 1)
    assert torch.equal(tensors["easy_images"], wanted)


def test_a_file_with_exits_is_timed_on_its_images(made: tuple[Artifact, Path], split: Split) -> None:
    path = made[1]
    measured, times = exit_benchmark(path, path, split, QUICK, 1, no_energy="it is not what this is about")
    figures = measured.figures
    assert times["timed_images"] == 30
    assert [len(calls) for calls in measured.calls_ms["single_ms"]] == [150, 150]  # five calls an image
    assert [len(measured.calls_ms[name]) for name in ("to_the_end_ms", "last_end_ms")] == [150, 150]
    own = np.reshape(measured.calls_ms["single_ms"][0], (5, 30))
    assert figures["latency_ms_mean"] == pytest.approx(np.median(own, 0).mean())
    assert headline_latency_ms(figures) == figures["latency_ms_mean"]
    assert figures["latency_ms_p50"] == pytest.approx(np.median(own))
    assert times["latency_share"] == pytest.approx(figures["latency_ms_mean"] / times["last_end_latency_ms_mean"])
    theirs = np.median(np.reshape(measured.calls_ms["single_ms"][1], (5, 30)), 0).mean()
    assert figures["speedup_vs_teacher"] == pytest.approx(theirs / figures["latency_ms_mean"])
    executed = executed_operators(path)
    nodes = Counter(node["operator"] for node in measured.profile["nodes"])
    assert nodes == executed  # in this mix each node runs, those of branches too
    assert sum(node["share_percent"] for node in measured.profile["nodes"]) == pytest.approx(100)


def test_on_noise_a_file_with_exits_has_the_figures_of_any_file(made: tuple[Artifact, Path]) -> None:
    figures = time_and_memory(made[1], made[1], SHAPE, QUICK, threads=1)
    assert "latency_ms_mean" not in figures
    assert figures["latency_ms_p50"] > 0
    assert headline_latency_ms(figures) == figures["latency_ms_p50"]
