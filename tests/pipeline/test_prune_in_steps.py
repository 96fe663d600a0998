"""Pruning in steps, with a target, sparsity learning and the teacher: one that is stopped ends with the same bits."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.config.schema import Config
from compress.config.stage_settings import PruneConfig, PruneTargetConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.evaluation.flops import count_cost
from compress.methods.restore import restore
from compress.models.artifact import Artifact
from compress.models.layer_calls import LAYERS
from compress.models.widths import read_widths
from compress.stages import prune as stage
from compress.training.checkpoint import Checkpoint
from tests.conftest import make_tiny_config
from tests.pipeline.small_training import CPU, Killed, dying
from tests.pipeline.test_resume import Chain, model_digests

STEPS = 2  # an epoch, which is saved after each of them, after one validation batch, and at its end
SAVINGS = STEPS + 2
TRAININGS = 3  # of sparsity, and of two steps


@pytest.fixture(scope="module")
def chain(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A teacher, and half of its MACs in two steps."""
    config = make_tiny_config(tiny_npz)
    config.data.batch_size, config.teacher.epochs = 48, 1
    config.prune = PruneConfig(
        target=PruneTargetConfig(macs_share=0.5),
        scope="global",
        importance="taylor",
        round_to=1,
        steps=2,
        distill=True,
        sparsity_epochs=1,
        epochs=2,
        reconstruction_samples=32,
    )
    chain = Chain(config, load_data(config.data, 0), {"teacher": None}, {})
    folder = tmp_path_factory.mktemp("curves")
    chain.made["teacher"] = chain.run("teacher", folder, None)
    chain.given["prune"] = copy.deepcopy(chain.made["teacher"])
    chain.made["prune"] = chain.run("prune", folder, None)
    return chain


def assert_same(found: Artifact, wanted: Artifact, folder: Path) -> None:
    assert model_digests(found, folder / "found") == model_digests(wanted, folder / "wanted")
    assert found.left_out == wanted.left_out
    differing = {name for name in wanted.notes if found.notes.get(name) != wanted.notes[name]}
    assert differing <= {"target"}  # which has the seconds that the search took
    for name in ("reached", "search"):
        assert found.notes["target"][name] == wanted.notes["target"][name]


@pytest.mark.parametrize("savings", [1, SAVINGS, SAVINGS + 2, 2 * SAVINGS, 2 * SAVINGS + 3])
def test_a_pruning_in_steps_killed_anywhere_ends_the_same(chain: Chain, tmp_path: Path, savings: int) -> None:
    with pytest.raises(Killed):
        chain.run("prune", tmp_path / "curves", dying(tmp_path / "state", savings))
    found = chain.run("prune", tmp_path / "curves", Checkpoint(tmp_path / "state", "key", 10))
    assert_same(found, chain.made["prune"], tmp_path)


def test_one_killed_in_each_training_ends_the_same(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is not chosen again: a choice after a measurement could come out another way."""
    chosen: list[int] = []
    choose = stage.choose_cut

    def counted(*arguments: object) -> object:
        chosen.append(arguments[-1])
        return choose(*arguments)

    monkeypatch.setattr(stage, "choose_cut", counted)
    for savings in (2, SAVINGS, SAVINGS):
        with pytest.raises(Killed):
            chain.run("prune", tmp_path / "curves", dying(tmp_path / "state", savings))
    found = chain.run("prune", tmp_path / "curves", Checkpoint(tmp_path / "state", "key", 10))
    assert_same(found, chain.made["prune"], tmp_path)
    assert chosen == [1, 2]


def test_the_notes_say_what_each_step_reached(chain: Chain) -> None:
    made, config = chain.made["prune"], chain.config
    share = (
        count_cost(made.network, chain.data.shape)[1] / count_cost(chain.given["prune"].network, chain.data.shape)[1]
    )
    first, last = made.notes["steps"]
    assert share <= 0.5 < first["macs_share"] <= 0.5**0.5
    assert last["macs_share"] == made.notes["target"]["reached"]["macs_share"] == share
    assert made.notes["target"]["asked"] == {"macs_share": 0.5}
    assert last["search"] == made.notes["target"]["search"]
    assert first["search"]
    assert first["search"] != last["search"]
    assert len(made.notes["history"]) == config.prune.sparsity_epochs + config.prune.epochs
    kept = made.spec.pruning[-1]["kept_filters"]
    assert not [row for row in made.left_out if row["layer"] in kept]


def test_the_model_is_read_again_bit_for_bit(chain: Chain, tmp_path: Path) -> None:
    made = chain.made["prune"]
    model_digests(made, tmp_path)
    again = restore(tmp_path, CPU)
    assert read_widths(again.network) == read_widths(made.network)
    images = torch.randn(4, *chain.data.shape)
    with torch.no_grad():
        assert torch.equal(again.network.eval()(images), made.network.eval()(images))
    assert again.spec == made.spec


def run_bare(config: Config, data: Data, given: Artifact, folder: Path) -> Artifact:
    """Pruned in two steps and no more: no sparsity, no refit, no training."""
    bare = replace(config.prune, sparsity_epochs=0, epochs=0, reconstruction_samples=0, distill=False, importance="l1")
    return Chain(replace(config, prune=bare), data, {"prune": given}, {}).run("prune", folder, None)


def test_kept_filters_are_numbered_as_in_the_first_network(chain: Chain, tmp_path: Path) -> None:
    """What is left of a layer over two steps are those filters of its first weights, up to their lengths."""
    given = chain.given["prune"]
    made = run_bare(chain.config, chain.data, copy.deepcopy(given), tmp_path / "curves")
    kept = made.spec.pruning[-1]["kept_filters"]
    assert len(kept) > 1
    for name, filters in kept.items():  # convolutions that read layers which keep all of theirs
        old, new = given.network.get_submodule(name).weight, made.network.get_submodule(name).weight
        assert len(filters) == len(new) < len(old)
        assert old.shape[1:] == new.shape[1:]
        old, new = (value.detach().flatten(1) for value in (old[filters], new))
        torch.testing.assert_close(new, old / old.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_a_layer_that_a_step_before_narrowed_is_not_left_out(chain: Chain, tmp_path: Path) -> None:
    """With widths in steps of eight, the second step has nothing to take from 8 of 16 filters."""
    bare = PruneConfig(ratio=0.5, steps=2, epochs=0, reconstruction_samples=0, round_to=8)
    config, given = replace(chain.config, prune=bare), copy.deepcopy(chain.given["prune"])
    made = Chain(config, chain.data, {"prune": given}, {}).run("prune", tmp_path / "curves", None)
    kept = made.spec.pruning[-1]["kept_filters"]
    assert len(kept["layer1.0.conv1"]) == 8
    assert {row["layer"] for row in made.left_out} == {name for name, _ in layers(made.network)} - set(kept)


def layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, LAYERS)]
