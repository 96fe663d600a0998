"""What a network computes on fixed images: recorded with each stage, and compared when its files are loaded.

Weights alone do not make a network: a constant in its code, an attribute, a helper's file or a random order decide as
well, and no file of a stage holds them.
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
# or memory format moves float32 logits by about 1e-6 of it, behind a hundred layers by 1e-5. In int8 such a difference
# may fall to the other side of a rounding step in any layer.
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.1
_PROJECTIONS = 8
# Steps to which the projections are rounded, as a share of the largest output: far above what rounding in the computing
# leaves in float64 and in float32, so that another CPU or number of threads hardly ever comes to another digest.
_STEP_FLOAT64, _STEP_FLOAT32 = 2.0**-20, 2.0**-7


def fixed_images(shape: tuple[int, int, int]) -> torch.Tensor:
    """Four images (4, C, H, W) of noise in squares of 1, 2, 4 and 8 pixels, the same with every version and machine.

    RandomState's streams are frozen by NumPy; torch's generators promise no such thing.
    """
    channels, height, width = shape
    generator = np.random.RandomState(_SEED)
    images = []
    for side in (1, 2, 4, 8):
        coarse = generator.standard_normal((channels, -(-height // side), -(-width // side)))
        images.append(np.kron(coarse, np.ones((1, side, side)))[:, :height, :width])
    return torch.from_numpy(np.stack(images[:_IMAGES])).float()


def fixed_outputs(network: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    """What `network`, on the CPU, gives for the fixed images: float32 (4, ...), all of its tensors side by side."""
    return _run(network, fixed_images(shape)).float()


def difference(found: torch.Tensor, recorded: torch.Tensor) -> float:
    """The largest difference as a share of the largest recorded value; infinity where shapes or NaNs differ."""
    if found.shape != recorded.shape or not torch.equal(found.isfinite(), recorded.isfinite()):
        return float("inf")
    finite = recorded.isfinite()
    if not finite.any():
        return 0.0
    largest = max(recorded[finite].abs().max().item(), torch.finfo(torch.float32).tiny)
    return (found[finite] - recorded[finite]).abs().max().item() / largest


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
    """Digests of what `network` computes in eval mode and in training, for the key of its stage.

    Computed in float64 and rounded coarsely, which no other CPU or number of threads changes. A network that computes
    in float32 whatever it is given is rounded more coarsely; its recorded outputs are compared besides.
    """
    return {"eval": _mode_digest(network, shape, training=False), "train": _mode_digest(network, shape, training=True)}


def _mode_digest(network: nn.Module, shape: tuple[int, int, int], training: bool) -> str | None:
    images = fixed_images(shape)[::2]  # float64 is slow, and two images say enough
    try:
        return _digest(_run(copy.deepcopy(network).double(), images.double(), training), _STEP_FLOAT64)
    except Exception:  # a tensor of its own in float32; in training also code that takes no such images
        return None if training else _digest(_run(network, images), _STEP_FLOAT32)


def _digest(outputs: torch.Tensor, step: float) -> str:
    """SHA-256 of a few random sums of `outputs`, rounded: few, so that hardly one lies where rounding can go both ways.

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
    """Every floating-point tensor that comes out, (N, ...) as (N, columns), side by side; in training on a copy."""
    if training:
        network = copy.deepcopy(network).train()
    elif network.training:
        network.eval()
    with seeded(_SEED), torch.no_grad():
        outputs = [value for value in tree_leaves(network(images)) if isinstance(value, torch.Tensor)]
    rows = [value.detach().cpu().reshape(len(value), -1) if value.ndim else value.reshape(1, 1) for value in outputs]
    count = max((len(row) for row in rows), default=0)
    return torch.cat([row.double() for row in rows if len(row) == count], 1) if rows else torch.zeros(0, 0)
