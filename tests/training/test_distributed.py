"""Two processes train what one would, only the first one writes, and one that dies ends all with its own words."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.config.schema import Config
from compress.data.augmentation import Augmentation
from compress.pipeline import compute
from compress.pipeline.compute import prepare
from compress.pipeline.run import run_pipeline
from compress.training.distributed import ProcessGroup, join
from compress.utils.errors import UserError
from compress.utils.files import STAGE, read_json
from compress.utils.torchrun import rank, world_size
from tests import two_ranks
from tests.config.test_config import composed
from tests.launch.test_command import ROOT, tiny

pytestmark = pytest.mark.e2e

STAGES = ["01_teacher", "02_prune", "03_distill", "04_quantize"]


def torchrun(task: str, npz: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Two processes of tests/two_ranks.py, which end in the command line with these arguments."""
    if find_spec("lightning_fabric") is None:
        pytest.skip("the extra devices is not installed")
    program = ["--standalone", "--nproc-per-node", "2", "-m", "tests.two_ranks", task, str(npz), str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *program, *tiny(npz), "teacher.model=resnet8", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@dataclass
class Pair:
    """What two processes left behind."""

    folder: Path
    output: str

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def state(self, rank: int, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"rank_{rank}" / f"{name}.safetensors")

    def told(self, rank: int) -> dict[str, object]:
        return read_json(self.folder / f"rank_{rank}" / "told.json")


@pytest.fixture(scope="module")
def pair(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The trainings of tests/two_ranks.py, and a whole run."""
    folder = tmp_path_factory.mktemp("pair")
    cache = ["cache.enabled=true", f"cache.dir={folder}/cache", f"hydra.run.dir={folder}/run"]
    cache.append("train.precision=float32")  # as the tests' own process
    done = torchrun("train", tiny_npz, folder, *cache)
    assert done.returncode == 0, done.stderr
    return Pair(folder, done.stdout + done.stderr)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any tensor, as a share of its largest value."""
    assert found.keys() == wanted.keys()
    pairs = [(found[name].double(), value.double()) for name, value in wanted.items() if value.numel()]
    return max(((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-9)).item() for mine, theirs in pairs)


@pytest.mark.parametrize("name", ["plain", "normalised"])
def test_two_processes_train_what_one_would(pair: Pair, tiny_npz: Path, name: str) -> None:
    """But for the order in which floats are all_reduce_tensor."""
    alone, _ = two_ranks.training(name, two_ranks.small_data(tiny_npz), ProcessGroup())
    assert distance(pair.state(0, name), alone) < 1e-5


@pytest.mark.parametrize(("name", "epochs"), [("rounded", 1), ("rounded_frozen", 3)])
def test_two_processes_round_what_one_would(pair: Pair, tiny_npz: Path, name: str, epochs: int) -> None:
    """A sum in another order may fall to the other side of a step of the grid, and no two trainings stay that close.

    So two processes may be as far from one as one is from itself with the images of each batch in another order.
    """
    data = two_ranks.small_data(tiny_npz)
    alone, _ = two_ranks.training("rounded", data, ProcessGroup(), epochs=epochs)
    reordered, _ = two_ranks.training("rounded", data, ProcessGroup(), two_ranks.reordered, epochs=epochs)
    found = pair.state(0, name)
    assert 0 < distance(found, alone) < 2 * distance(reordered, alone)
    for end in ("min_val", "max_val"):  # of the images themselves: no weight goes into it
        of_images = f"activation_post_process_0.activation_post_process.{end}"
        assert found[of_images].item() == pytest.approx(alone[of_images].item(), rel=1e-6)


@pytest.mark.parametrize(("name", "ema"), [("pruned_between", 0.0), ("averaged_between", 0.5)])
def test_two_processes_go_on_together_after_the_first_of_two_trainings(
    pair: Pair, tiny_npz: Path, name: str, ema: float
) -> None:
    """Both prune, each for itself, and choose the same filters, because they end with the same weights.

    Only the first one takes the average at the end of the last training: the others are no longer needed then.
    """
    alone = two_ranks.pruned_between(two_ranks.small_data(tiny_npz), ProcessGroup(), ema=ema)
    found, other = pair.state(0, name), pair.state(1, name)
    assert distance(found, alone) < 1e-4
    assert (distance(found, other) == 0) == (ema == 0)
    for number in (0, 1):
        assert pair.told(number)[f"{name}_stopped"].startswith(
            "received SIGTERM after step 2 of 3 of test (fine-tuning);"
        )
        assert distance(pair.state(number, f"{name}_stopped"), pair.state(number, name)) == 0


@pytest.mark.parametrize("name", two_ranks.NETWORKS)
def test_all_processes_end_with_the_same_bits(pair: Pair, name: str) -> None:
    first, second = pair.state(0, name), pair.state(1, name)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_fits_into_one_memory_only_is_taken_in_parts_by_both(pair: Pair) -> None:
    """Of 16 images a process, 4 fit into the first one's memory."""
    assert distance(pair.state(0, "small_memory"), pair.state(0, "plain")) < 1e-5
    assert "each batch is taken in 4 parts" in pair.told(0)["notes"]["out_of_memory"]
    assert pair.told(0)["seen"][:3] == [16, 8, 4]
    assert pair.told(1)["seen"] == [16, *[4, 4, 4, 3] * 3]  # its trial, and three batches, of which it has 15


def test_a_signal_to_one_process_stops_both_behind_the_same_step(pair: Pair) -> None:
    wanted = "received SIGTERM after step 2 of 3 of test; its state is saved"
    for number in (0, 1):
        assert pair.told(number)["stopped"] == wanted
        found, undisturbed = pair.state(number, "stopped"), pair.state(number, "normalised")
        assert all(torch.equal(value, found[key]) for key, value in undisturbed.items())


def test_a_run_of_two_processes_writes_each_line_and_file_once(pair: Pair) -> None:
    assert sorted(path.name for path in pair.folder.iterdir()) == [
        "cache",
        "rank_0",
        "rank_1",
        "run",
        "state",
        "state_of_averaged_between",
        "state_of_pruned_between",
    ]
    assert sorted(path.name for path in pair.run.glob("0*")) == STAGES
    log = (pair.run / "compress.log").read_text()
    for line in ("2 processes share each batch", "teacher: starts", "distill: epoch 1 of 1", "quantize: kept epoch 1"):
        assert log.count(line) == pair.output.count(line) == 1
    assert pair.output.count("the file to deploy") == 1
    assert "Warning" not in pair.output
    assert [read_json(pair.run / stage / STAGE)["processes"] for stage in STAGES] == [2] * 4


def test_one_process_takes_what_two_have_made(
    pair: Pair, tiny_npz: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the same keys: how many processes there are changes no more than the order of sums."""
    caplog.set_level("INFO", "compress")
    cache = ["cache.enabled=true", f"cache.dir={pair.folder}/cache"]
    run_pipeline(composed(*tiny(tiny_npz), "teacher.model=resnet8", *cache), tmp_path)
    assert caplog.text.count("taken from the cache") == 4


def test_a_process_that_dies_ends_the_run_with_its_own_words(tiny_npz: Path, tmp_path: Path) -> None:
    done = torchrun("die", tiny_npz, tmp_path, "teacher.epochs=2", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    words = "compress, process 1: received an image that only process 1 reads; expected one that can be decoded"
    assert words in done.stderr
    cause = done.stderr.split("Root Cause")[1]
    assert f"traceback : {words}" in cause
    assert "rank      : 1" in cause
    assert "exitcode  : 2" in cause
    assert "gloo" not in done.stderr  # process 0 lost its peer in the middle of a sum, which is not why the run ended
    assert not list(tmp_path.glob(f"run/*/{STAGE}"))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_parts_make_up_the_batch(world: int) -> None:
    """With the very crops and flips that one process would have drawn."""
    images = torch.arange(64 * 13, dtype=torch.uint8).view(13, 1, 8, 8)
    labels, augmentation = torch.arange(13), Augmentation(2, True)
    wanted, _ = augmentation(images, labels, torch.Generator().manual_seed(0))
    parts = [ProcessGroup(rank, world).shard for rank in range(world)]
    found = [
        augmentation(part(images), part(labels), torch.Generator().manual_seed(0), part, len(images)) for part in parts
    ]
    assert torch.equal(torch.cat([images for images, _ in found]), wanted)
    assert torch.equal(torch.cat([labels for _, labels in found]), labels)
    sizes = [len(labels) for _, labels in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells the second of two processes."""
    for name, value in {"RUN_ID": "test", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}" if name == "RUN_ID" else name, value)


def test_only_what_torchrun_starts_looks_for_others(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers set some of the same variables, for ends of their own."""
    assert (rank(), world_size()) == (1, 2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert (rank(), world_size()) == (0, 1)
    assert join(torch.device("cpu")) == ProcessGroup()


def test_several_devices_without_their_extra_end_in_one_line(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(UserError, match=r"received 2 processes, and no package lightning_fabric; .*\[devices\]"):
        join(torch.device("cpu"))


def test_more_processes_than_gpus_end_in_one_line(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"received 2 processes on a machine with 1 GPUs; .* or set device=cpu"):
        join(torch.device("cuda"))


def test_more_processes_than_images_end_in_one_line(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "join", lambda device: ProcessGroup(1, 33))
    with pytest.raises(UserError, match="received 33 processes that share batches of 32 images"):
        prepare(tiny_config)


def test_a_process_that_would_compute_something_else_says_what() -> None:
    leaders = {"data_fingerprint": "a", "versions": {"torch": "2.15"}, "seed": 0}
    compute._require_the_same(leaders, dict(leaders), 1)
    with pytest.raises(UserError, match="received process 1 with other data_fingerprint, versions than process 0"):
        compute._require_the_same(leaders, leaders | {"data_fingerprint": "b", "versions": {"torch": "2.14"}}, 1)
