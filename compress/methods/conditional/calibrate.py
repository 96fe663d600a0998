"""Chooses the thresholds of a trained network with several ends on validation images, and says what they come to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.data.dataset import Split
from compress.methods.conditional.selection import Ends
from compress.methods.conditional.thresholds import Choice, choose
from compress.utils.tensors import to_device


def calibrate_exits(
    network: Ends, record: dict[str, Any], val: Split, device: torch.device
) -> tuple[Choice, dict[str, Any]]:
    """Returns temperatures and thresholds for `network`, in eval mode on `device`, and notes on what they come to.

    `record` is that of the stage in model.json: it names the ends, and has the MACs of an image up to each and the
    points that may be lost.
    """
    ends = _split_ends(network, val, device)
    choice = choose(ends, val.labels, record["macs"], record["settings"]["max_drop_points"])
    return choice, {"exits": _notes(choice, ends, val.labels, record)}


@torch.no_grad()
def _split_ends(network: Ends, split: Split, device: torch.device) -> list[Tensor]:
    """Returns the logits (N, K) of all ends on all images of `split`, float32 on the CPU."""
    batches = [network.ends(to_device(images, device)) for images, _ in split.batches()]
    return [torch.cat(parts).float().cpu() for parts in zip(*batches, strict=True)]


def _notes(choice: Choice, ends: Sequence[Tensor], labels: Tensor, record: dict[str, Any]) -> dict[str, Any]:
    right = torch.stack([logits.argmax(1) == labels for logits in ends]).double()  # (E + 1, N)
    taken = right.gather(0, choice.leaves[None])[0]
    rows = []
    for at, macs in enumerate(record["macs"]):
        here = choice.leaves == at
        last = at == len(choice.thresholds)
        rows.append(
            {
                **record["ends"][at],
                "macs": macs,
                "temperature": None if last else choice.temperatures[at],
                "threshold": None if last else choice.thresholds[at],
                "val_share_percent": 100 * here.double().mean().item(),
                "val_top1_percent": 100 * taken[here].mean().item() if here.any() else None,
                "val_top1_percent_of_all": 100 * right[at].mean().item(),
            }
        )
    return {
        "ends": rows,
        "val_images": len(labels),
        "val_mean_macs": torch.tensor(record["macs"], dtype=torch.float64)[choice.leaves].mean().item(),
        "val_top1_percent": 100 * taken.mean().item(),
    }
