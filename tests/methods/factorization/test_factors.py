"""Decompositions: full rank is exact, the error is that of the singular values left out, and data makes it smaller."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.methods.factorization.factors import SPATIAL, SVD, TUCKER, decompose, product
from compress.methods.factorization.weighted import fit_factors

SHAPES = {SVD: (10, 6, 1, 1), SPATIAL: (10, 6, 3, 3), TUCKER: (10, 6, 3, 3)}
FULL = {SVD: [6], SPATIAL: [18], TUCKER: [6, 10]}
LOW = {SVD: [3], SPATIAL: [5], TUCKER: [3, 4]}
LINEAR = (10, 6)


def weight_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(inputs: int) -> Tensor:
    """The second moments of inputs that differ much in size and depend on each other."""
    mixed = weight_of((200, inputs), 1) @ weight_of((inputs, inputs), 2)
    return mixed.T @ mixed / 200


@pytest.mark.parametrize("kind", FULL)
def test_full_rank_reproduces_the_weight(kind: str) -> None:
    weight = weight_of(SHAPES[kind])
    torch.testing.assert_close(product(decompose(weight, kind, FULL[kind])), weight)
    flat = weight.flatten(1).T.contiguous()
    fitted = fit_factors(flat, metric_of(len(flat)), weight.shape, kind, FULL[kind])
    torch.testing.assert_close(product(fitted), weight, rtol=0, atol=1e-4)  # the metric is ill-conditioned


def test_full_rank_reproduces_a_linear_weight() -> None:
    weight = weight_of(LINEAR)
    torch.testing.assert_close(product(decompose(weight, SVD, [6])), weight)
    fitted = fit_factors(weight.T.contiguous(), metric_of(6), weight.shape, SVD, [6])
    assert [part.shape for part in fitted] == [(6, 6), (10, 6)]
    torch.testing.assert_close(product(fitted), weight)


def test_the_error_of_a_spatial_svd_is_that_of_the_singular_values_left_out() -> None:
    """By NumPy from the matrix whose rows are (input, row of the kernel) and whose columns (output, column)."""
    weight = weight_of(SHAPES[SPATIAL])
    matrix = weight.numpy().transpose(1, 2, 0, 3).reshape(6 * 3, 10 * 3)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 5, 17):
        error = (product(decompose(weight, SPATIAL, [rank])) - weight).square().sum().item()
        assert error == pytest.approx((values[rank:] ** 2).sum())


def test_tucker_is_no_worse_than_the_subspaces_of_its_sides() -> None:
    """The truncated HOSVD, by NumPy: projections on the leading directions of outputs and of inputs."""
    weight = weight_of(SHAPES[TUCKER])
    array = weight.numpy()
    outputs = np.linalg.svd(array.reshape(10, -1))[0][:, :4]
    inputs = np.linalg.svd(array.transpose(1, 0, 2, 3).reshape(6, -1))[0][:, :3]
    hosvd = np.einsum("oihw,op,iq->pqhw", array, outputs @ outputs.T, inputs @ inputs.T)
    error = (product(decompose(weight, TUCKER, [3, 4])) - weight).square().sum().item()
    assert 0 < error < ((hosvd - array) ** 2).sum()


@pytest.mark.parametrize("kind", LOW)
def test_a_fit_to_the_inputs_costs_less_than_a_decomposition_of_the_weight(kind: str) -> None:
    weight = weight_of(SHAPES[kind])
    flat = weight.flatten(1).T.contiguous()
    metric = metric_of(len(flat))

    def cost(factors: list[Tensor]) -> float:
        change = product(factors).flatten(1).T - flat
        return (change * (metric @ change)).sum().item()

    fitted = fit_factors(flat, metric, weight.shape, kind, LOW[kind])
    assert [part.shape for part in fitted] == [part.shape for part in decompose(weight, kind, LOW[kind])]
    assert cost(fitted) < 0.9 * cost(decompose(weight, kind, LOW[kind]))


def test_an_svd_fitted_to_inputs_keeps_the_principal_components_of_the_outputs() -> None:
    """Zhang et al. 2015, by NumPy: outputs projected on the leading eigenvectors of their second moments."""
    weight, metric = weight_of(LINEAR), metric_of(6)
    moments = weight.numpy() @ metric.numpy() @ weight.numpy().T
    leading = np.linalg.eigh(moments)[1][:, -3:]
    wanted = leading @ leading.T @ weight.numpy()
    found = product(fit_factors(weight.T.contiguous(), metric, weight.shape, SVD, [3]))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)
