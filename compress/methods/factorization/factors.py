"""Decomposes the weight of a layer into those of two or three smaller layers, from the weight alone.

A weight is (C_out, C_in, k_h, k_w) of a convolution or (C_out, C_in) of a linear layer. Its factors are weights of
layers that run one after the other.
"""

import torch
from torch import Tensor

SVD, SPATIAL, TUCKER = "svd", "spatial_svd", "tucker2"

_HOOI_STEPS = 10  # by then the subspaces of trained layers have settled


def decompose(weight: Tensor, kind: str, ranks: list[int]) -> list[Tensor]:
    """Returns the factors of `weight`; `ranks` is [rank], or [inner inputs, inner outputs] of Tucker-2."""
    if kind == TUCKER:
        return tucker2(weight, *ranks)
    return (svd if kind == SVD else spatial_svd)(weight, *ranks)


def svd(weight: Tensor, rank: int) -> list[Tensor]:
    """Returns the weights (R, C_in) and (C_out, R), or of 1 x 1 convolutions, by the truncated SVD."""
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    ones = weight.shape[2:]
    first, second = values[:rank, None] * right[:rank], left[:, :rank]
    return [first.reshape(rank, weight.shape[1], *ones), second.reshape(weight.shape[0], rank, *ones)]


def spatial_svd(weight: Tensor, rank: int) -> list[Tensor]:
    """Returns the weights (R, C_in, k_h, 1) and (C_out, R, 1, k_w) whose product is nearest to `weight`.

    Jaderberg et al. 2014, arXiv:1405.3866, section 2, scheme 2; the optimum is the SVD of the matrix of (C_in k_h) rows
    and (C_out k_w) columns (Tai et al. 2016, arXiv:1511.06067, theorem 1).
    """
    outputs, inputs, height, width = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    first = (left[:, :rank] * values[:rank]).T.reshape(rank, inputs, height, 1)
    second = right[:rank].reshape(rank, outputs, 1, width).transpose(0, 1)
    return [first, second]


def tucker2(weight: Tensor, inner_inputs: int, inner_outputs: int) -> list[Tensor]:
    """Returns the weights (R_in, C_in, 1, 1), (R_out, R_in, k_h, k_w) and (C_out, R_out, 1, 1).

    Kim et al. 2016, arXiv:1511.06530, equations 6 to 8. The subspaces start from the HOSVD, and some steps of HOOI
    improve them in turn (De Lathauwer et al. 2000).
    """
    of_outputs = _leading(weight.flatten(1), inner_outputs)
    of_inputs = _leading(weight.transpose(0, 1).flatten(1), inner_inputs)
    for _ in range(_HOOI_STEPS):
        narrow = torch.einsum("oihw,ir->orhw", weight, of_inputs)
        of_outputs = _leading(narrow.flatten(1), inner_outputs)
        narrow = torch.einsum("oihw,or->irhw", weight, of_outputs)
        of_inputs = _leading(narrow.flatten(1), inner_inputs)
    core = torch.einsum("oihw,or,is->rshw", weight, of_outputs, of_inputs)
    return [of_inputs.T[..., None, None], core, of_outputs[..., None, None]]


def product(factors: list[Tensor]) -> Tensor:
    """Returns the weight of the one layer that computes the same as layers with `factors` one after the other."""
    if factors[0].dim() == 2:
        return factors[1] @ factors[0]
    if len(factors) == 3:
        first, core, last = factors
        return torch.einsum("sihw,rsHW,orhw->oiHW", first, core, last)
    first, second = factors  # a dimension of the kernel belongs to one factor, and has size 1 in the other
    return torch.einsum("riaw,orhb->oiahwb", first, second).reshape(
        second.shape[0], first.shape[1], first.shape[2] * second.shape[2], first.shape[3] * second.shape[3]
    )


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Returns the `rank` leading left singular vectors of a matrix, as columns."""
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
