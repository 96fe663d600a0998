"""A signal ends a training after its step, with its state saved, and does outside what it always does."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.data.augmentation import ShardFn
from compress.data.dataset import Batch, Data
from compress.methods.distillation.losses import label_loss
from compress.training.checkpoint import Checkpoint
from compress.utils.errors import Interrupted
from compress.utils.signals import deferred_signals
from tests.pipeline.small_training import EPOCHS, STEPS, assert_equal, small_training


@pytest.fixture
def handlers() -> Iterator[list]:
    """Those of SIGTERM and SIGINT, which must be as before at the end."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_behind_its_step(data: Data, tmp_path: Path, handlers: list, number: int) -> None:
    calls = []

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(number)
        return label_loss(0.0)(network, examples)

    wanted, _ = small_training(data, tmp_path / "curves", None)
    checkpoint = Checkpoint(tmp_path / "state", "key", 10)
    with pytest.raises(
        Interrupted, match=f"received {signal.Signals(number).name} after step 5 of 9 of test; its state"
    ):
        small_training(data, tmp_path / "curves", checkpoint, loss)
    assert len(calls) == len(checkpoint.load()[0]["losses.steps"]) == 5
    found, _ = small_training(data, tmp_path / "curves", checkpoint)
    assert_equal(found, wanted)


def test_a_signal_while_the_last_epoch_is_validated_is_not_lost(data: Data, tmp_path: Path, handlers: list) -> None:
    batches, reads = data.val.batches, []

    def signalled(part: ShardFn, device: torch.device) -> Iterator:
        reads.append(1)
        if len(reads) == EPOCHS:
            signal.raise_signal(signal.SIGTERM)
        return batches(part, device)

    data.val.batches = signalled
    checkpoint = Checkpoint(tmp_path / "state", "key", 10)
    with pytest.raises(Interrupted, match="after step 9 of 9"):
        small_training(data, tmp_path / "curves", checkpoint)
    data.val.batches = batches
    assert len(checkpoint.load()[0]["losses.steps"]) == EPOCHS * STEPS
    found, _ = small_training(data, tmp_path / "curves", checkpoint)
    assert_equal(found, small_training(data, tmp_path / "curves", None)[0])


def test_a_second_interrupt_ends_at_once(handlers: list) -> None:
    def interrupted() -> None:
        with deferred_signals() as received:
            for number in (signal.SIGTERM, signal.SIGTERM):
                signal.raise_signal(number)
            assert received == [signal.SIGTERM, signal.SIGTERM]
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the interrupt was only noted")

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_signal_that_nobody_looked_at_does_what_it_does_outside(handlers: list) -> None:
    def overlooked() -> None:
        with deferred_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGINT]

    with pytest.raises(KeyboardInterrupt):
        overlooked()


def test_a_signal_that_the_process_ignores_stays_ignored(handlers: list) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
    with deferred_signals() as received:
        signal.raise_signal(signal.SIGINT)
    assert received == []
    signal.signal(signal.SIGINT, handlers[1])
