"""Records a network's outputs on fixed images with each stage, and compares them when its files are loaded.

Weights alone do not determine a network: a constant in its code, an attribute, a helper's file or a random order
matter as well, and no file of a stage holds them.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from compress.models.seeds import seeded
from compress.utils.errors import UserError
from compress.utils.files import digest_of

_IMAGES = 4  # batch norm in training needs more than one
_SEED = 20240131
# The largest difference from the recorded outputs, as a share of the largest of them. Another CPU, number of threads
# or memory format changes float32 logits by about 1e-6 of it, after a hundred layers by 1e-5. In int8 such a
# difference may cross a rounding step in any layer.
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.1
_PROJECTIONS = 8
# Steps to which the projections are rounded, as a share of the largest output: far above the rounding errors of float64
# and of float32, so that another CPU or number of threads hardly ever leads to another digest.
_STEP_FLOAT64, _STEP_FLOAT32 = 2.0**-20, 2.0**-7


def fixed_images(shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns four images (4, C, H, W) of noise in squares of 1, 2, 4 and 8 pixels, equal on every machine.

    NumPy guarantees that RandomState's streams stay the same in every version; torch does not for its generators.
    """
    channels, height, width = shape
    generator = np.random.RandomState(_SEED)
    images = []
    for side in (1, 2, 4, 8):
        coarse = generator.standard_normal((channels, -(-height // side), -(-width // side)))
        images.append(np.kron(coarse, np.ones((1, side, side)))[:, :height, :width])
    return torch.from_numpy(np.stack(images[:_IMAGES])).float()


def fixed_outputs(network: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns the outputs of `network`, on the CPU, for the fixed images: all tensors joined as float32 (4, ...)."""
    return _run(network, fixed_images(shape)).float()


def difference(outputs: torch.Tensor, recorded: torch.Tensor) -> float:
    """Returns the largest difference as a share of the largest recorded value; infinity where shapes or NaNs differ."""
    if outputs.shape != recorded.shape or not torch.equal(outputs.isfinite(), recorded.isfinite()):
        return float("inf")
    finite = recorded.isfinite()
    if not finite.any():
        return 0.0
    largest = max(recorded[finite].abs().max().item(), torch.finfo(torch.float32).tiny)
    return (outputs[finite] - recorded[finite]).abs().max().item() / largest


def require_recorded_outputs(
    network: nn.Module, recorded: torch.Tensor, shape: tuple[int, int, int], folder: Path, quantized: bool
) -> None:
    """Raises UserError where `network`, rebuilt from the stage `folder`, computes something else than is recorded."""
    off = difference(fixed_outputs(network, shape), recorded)
    tolerance = INT8_TOLERANCE if quantized else FLOAT_TOLERANCE
    if not off <= tolerance:
        raise UserError(
            f"{folder}, from which a network is rebuilt whose outputs on fixed images differ from those that the stage "
            f"recorded by {off:.3g} of the largest",
            f"the network that made this stage, within {tolerance:g}",
            "it depends on something that is in no parameter or buffer (a constant, an attribute or a helper in its "
            "code, a random choice, a file, or another version of the library that defines it) and that has changed: "
            "restore that and run again, or compute all anew with another hydra.run.dir and cache.enabled=false",
        )


def outputs_digest(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, str | None]:
    """Returns digests of the outputs of `network` in eval mode and in training, for the key of its stage.

    Outputs are computed in float64 and rounded coarsely, so that another CPU or number of threads changes nothing. A
    network that computes in float32 in any case is rounded more coarsely; its recorded outputs are compared as well.
    """
    return {"eval": _mode_digest(network, shape, training=False), "train": _mode_digest(network, shape, training=True)}


def _mode_digest(network: nn.Module, shape: tuple[int, int, int], training: bool) -> str | None:
    images = fixed_images(shape)[::2]  # float64 is slow, and two images say enough
    try:
        return _digest(_run(copy.deepcopy(network).double(), images.double(), training), _STEP_FLOAT64)
    except Exception:  # it has a tensor that stays float32, or in training it does not accept such images
        return None if training else _digest(_run(network, images), _STEP_FLOAT32)


def _digest(outputs: torch.Tensor, step: float) -> str:
    """Returns the SHA-256 of a few rounded random sums of `outputs`: few, so that hardly one is near a rounding step.

    The scale is a power of two for the same reason.
    """
    values = outputs.double().numpy()
    finite = np.isfinite(values)
    scale = 2.0 ** np.ceil(np.log2(np.abs(values[finite]).max(initial=1e-300))) if finite.any() else 1.0
    weights = np.random.RandomState(_SEED).standard_normal((_PROJECTIONS, values.size)) / np.sqrt(max(values.size, 1))
    sums = weights @ np.where(finite, values / scale, 0).ravel()
    return digest_of(
        {
            "shape": list(values.shape),
            "finite": int(finite.sum()),
            "scale": float(scale),
            "sums": np.round(sums / step).astype(int).tolist(),
        }
    )


def _run(network: nn.Module, images: torch.Tensor, training: bool = False) -> torch.Tensor:
    """Returns all output tensors, each (N, ...) as (N, columns), joined; in training mode it runs a copy."""
    if training:
        network = copy.deepcopy(network).train()
    elif network.training:
        network.eval()
    with seeded(_SEED), torch.no_grad():
        outputs = [value for value in tree_leaves(network(images)) if isinstance(value, torch.Tensor)]
    rows = [value.detach().cpu().reshape(len(value), -1) if value.ndim else value.reshape(1, 1) for value in outputs]
    count = max((len(row) for row in rows), default=0)
    return torch.cat([row.double() for row in rows if len(row) == count], 1) if rows else torch.zeros(0, 0)
