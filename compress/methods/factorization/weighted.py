"""Finds the factors whose outputs, not whose weights, are nearest to those of a layer.

`target` (C_in k k, C_out) is the best weight and `metric` (C_in k k, C_in k k) what a change of it costs: both come
from `Moments`. All functions return factors as `compress.methods.factorization.factors` does, in double precision.
"""

import torch
from torch import Tensor

from compress.methods.factorization.factors import SPATIAL, SVD, tucker2

_ROUNDS = 5  # of fitting one factor of a spatial SVD after the other; later rounds gain less than a percent
_STEPS = 10  # of conjugate gradients for the first factor, which starts near its optimum


def fit_factors(target: Tensor, metric: Tensor, shape: torch.Size, kind: str, ranks: list[int]) -> list[Tensor]:
    """Returns the factors of a layer whose weight has `shape`; `ranks` as in `decompose`."""
    if kind == SVD:
        first, second = reduced_rank(target, metric, *ranks)
        ones = shape[2:]
        return [first.T.reshape(-1, shape[1], *ones), second.T.reshape(shape[0], -1, *ones)]
    if kind == SPATIAL:
        return _spatial(target, metric, shape, *ranks)
    return _tucker(target, metric, shape, *ranks)


def reduced_rank(target: Tensor, metric: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns (P, R) and (R, C_out), whose product costs the least among all of that rank.

    With the covariance of the inputs as the metric these are the principal components of the outputs (Zhang et al.
    2015, arXiv:1505.06798, equation 4): W V V^T, where V are their leading directions.
    """
    root = torch.linalg.cholesky(metric)
    directions = torch.linalg.svd(root.T @ target, full_matrices=False).Vh[:rank]
    return target @ directions.T, directions


def _tucker(target: Tensor, metric: Tensor, shape: torch.Size, inner_inputs: int, inner_outputs: int) -> list[Tensor]:
    """Takes the inputs' subspace from the weight; the other two factors are the optimum for it."""
    outputs, _, height, width = shape
    first = tucker2(target.T.reshape(shape), inner_inputs, inner_outputs)[0]
    place = torch.eye(height * width, dtype=target.dtype, device=target.device)
    narrow = torch.kron(first.flatten(1).T.contiguous(), place)
    inner = narrow.T @ metric @ narrow
    best = torch.linalg.solve(inner, narrow.T @ metric @ target)
    core, last = reduced_rank(best, inner, inner_outputs)
    return [first, core.T.reshape(-1, inner_inputs, height, width), last.T.reshape(outputs, -1, 1, 1)]


def _spatial(target: Tensor, metric: Tensor, shape: torch.Size, rank: int) -> list[Tensor]:
    """Starts from the best approximation of what each column of the kernel adds, and fits the factors in turn.

    Both fits minimize the cost of the product: the second factor by its normal equations, the first one, whose
    equations are many, by conjugate gradients.
    """
    outputs, inputs, height, width = shape
    size = inputs * height
    cost = metric.reshape(size, width, size, width)
    wanted = (metric @ target).reshape(size, width, outputs)
    columns = target.reshape(size, width * outputs)
    first, second = reduced_rank(columns, cost.diagonal(dim1=1, dim2=3).mean(-1), rank)
    for _ in range(_ROUNDS):
        second = _second(first, cost, wanted)
        turned, triangle = torch.linalg.qr(second.reshape(rank, -1).T)
        second, first = turned.T.reshape(rank, width, outputs), first @ triangle.T
        first = _first(first, second, cost, wanted)
    second = _second(first, cost, wanted)
    return [first.T.reshape(rank, inputs, height, 1), second.permute(2, 0, 1)[:, :, None]]


def _second(first: Tensor, cost: Tensor, wanted: Tensor) -> Tensor:
    """Returns the best second factor (R, k_w, C_out) for the first one (C_in k_h, R)."""
    rank, (_, width, outputs) = first.shape[1], wanted.shape
    seen = torch.einsum("ir,iajb->rajb", first, cost)
    gram = torch.einsum("rajb,js->rasb", seen, first).reshape(rank * width, rank * width)
    gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    cross = torch.einsum("ir,iao->rao", first, wanted).reshape(rank * width, outputs)
    return torch.linalg.solve(gram, cross).reshape(rank, width, outputs)


def _first(first: Tensor, second: Tensor, cost: Tensor, wanted: Tensor) -> Tensor:
    """Returns a better first factor (C_in k_h, R) for the second one (R, k_w, C_out), by conjugate gradients."""
    pairs = torch.einsum("rao,sbo->abrs", second, second)
    right = torch.einsum("iao,rao->ir", wanted, second)
    blocks = cost.permute(1, 3, 0, 2).contiguous()

    def product(value: Tensor) -> Tensor:
        # sum over a, b of blocks[a, b] @ value @ pairs[b, a]
        return torch.einsum("abij,abjr->ir", blocks, torch.einsum("js,abrs->abjr", value, pairs))

    residual = right - product(first)
    direction, square = residual, residual.square().sum()
    for _ in range(_STEPS):
        turned = product(direction)
        length = square / (direction * turned).sum().clamp_min(1e-300)
        first, residual = first + length * direction, residual - length * turned
        before, square = square, residual.square().sum()
        if square <= 1e-20 * right.square().sum():
            break
        direction = residual + square / before * direction
    return first
