"""Factorizes the layers of a network one after the other, each fitted to what the original's layer returned."""

import itertools

import torch
from torch import Tensor, fx, nn

from compress.methods.factorization.factors import decompose, product
from compress.methods.factorization.layers import Factors, factor_layers, fill, replace_layer
from compress.methods.factorization.moments import MOST_INPUTS, Moments, measure_moments
from compress.methods.factorization.weighted import fit_factors
from compress.methods.pruning.least_squares import Fit
from compress.methods.pruning.receptive import channel_dim
from compress.methods.pruning.refit_targets import refit_targets, set_statistics, source_of, without_inplace
from compress.models.graph.paired_interpreter import PairedInterpreter
from compress.models.graph.tracing import trace

_CHUNK = 64  # images at a time
_SHORTEST = 1e-12
_LEAST_SIZE = 1e-3  # of the largest channel's: smaller ones would only scale up noise


@torch.no_grad()
def factorize_layers(
    network: nn.Module, original: nn.Module, chosen: dict[str, Factors], images: Tensor
) -> dict[str, float]:
    """Replaces the layers of `chosen` in `network`, a copy of `original`, in place; returns the error of each.

    Each is fitted from the inputs that it receives in the factorized network to the original's outputs, so that
    errors do not add up. Where a residual sum follows, the target is the original's sum. Batch norm receives the
    statistics of its new inputs. `images` is (N, C, H, W). An error is the squared one as a share of the target's.
    A layer with more inputs than `MOST_INPUTS` is decomposed by its weight alone, and has no error.
    """
    graph = trace(original.eval(), images[:1])
    errors = {}
    with without_inplace(network, original):
        pair = PairedInterpreter(graph, network.eval(), original, list(images.split(_CHUNK)))
        for node in graph.nodes:
            if node.op == "call_module" and node.target in chosen:
                error = LayerToFit(pair, node).factorize(network, chosen[node.target])
                if error is not None:
                    errors[node.target] = error
            pair.step(node)
    return errors


@torch.no_grad()
def decompose_layers(network: nn.Module, chosen: dict[str, Factors]) -> None:
    """Replaces the layers of `chosen` by the factors of their weights, in place and without looking at images."""
    for name, factors in chosen.items():
        layer = network.get_submodule(name)
        weights = decompose(layer.weight.double(), factors.kind, list(factors.ranks))
        layers = factor_layers(layer, factors)
        fill(layers, _unit_length(weights), layer.bias)
        replace_layer(network, name, layers)


class LayerToFit:
    """A layer with the moments of its inputs and targets, from which it can be factorized at any rank."""

    def __init__(self, pair: PairedInterpreter, node: fx.Node):
        """Reads the values of both networks where `node` calls the layer."""
        self.name = str(node.target)
        self.layer = pair.original.get_submodule(self.name)
        norm, targets = refit_targets(pair, node)
        self.norm_name = None if norm is None else _name_of(pair.network, norm)
        inputs = pair.values(source_of(node))
        self.sample = inputs[0]
        self.weight = self.layer.weight.double().flatten(1).T
        if norm is not None:  # the targets are those of batch norm: so is the weight
            self.weight = self.weight * (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).double()
        central = norm is not None or self.layer.bias is not None
        few = len(self.weight) <= MOST_INPUTS
        self.moments: Moments | None = measure_moments(self.layer, inputs, targets, central) if few else None
        if self.moments is not None:
            self.metric = self.moments.metric()
            self.best = self.moments.best_weight(self.weight)

    def factorize(self, network: nn.Module, factors: Factors) -> float | None:
        """Replaces the layer in `network`, and sets the batch norm after it; returns the error of its outputs.

        None stands for a layer with too many inputs to fit.
        """
        if self.moments is None:
            decompose_layers(network, {self.name: factors})
            return None
        weights = fit_factors(self.best, self.metric, self.layer.weight.shape, factors.kind, list(factors.ranks))
        whole = product(weights).flatten(1).T
        fit = self._fit(self.moments, whole)
        layers = factor_layers(self.layer, factors)
        has_bias = self.layer.bias is not None
        bias = None if not has_bias else fit.intercept if self.norm_name is None else torch.zeros_like(fit.intercept)
        fill(layers, weights, bias)
        even_out(layers, self.sample)
        replace_layer(network, self.name, layers)
        if self.norm_name is not None:
            set_statistics(network.get_submodule(self.norm_name), fit)
        return fit.residual_variance

    def _fit(self, moments: Moments, weight: Tensor) -> Fit:
        mean = moments.output_mean(weight)
        intercept = moments.target_mean - mean
        variance = moments.output_variance(weight).clamp_min(0)
        return Fit(weight.float(), intercept.float(), mean.float(), variance.float(), moments.error(weight))


def even_out(layers: nn.Sequential, inputs: Tensor) -> None:
    """Scales the channels between factors to one size, and each factor's filters to a mean length of 1 but the last's.

    Their product stays. Int8 has one scale for all channels between two factors, and a learning rate means the same
    for filters of one length.
    """
    values = inputs
    for layer, after in itertools.pairwise(layers):
        values = layer(values)
        dims = [dim for dim in range(values.dim()) if dim != channel_dim(layer) % values.dim()]
        size = values.square().mean(dims).sqrt()
        scale = 1 / (size + _LEAST_SIZE * size.max()).clamp_min(_SHORTEST)
        length = (_rows(scale, layer) * layer.weight).flatten(1).norm(dim=1).mean().clamp_min(_SHORTEST)
        scale = scale / length
        layer.weight.mul_(_rows(scale, layer))
        after.weight.div_(_rows(scale, layer).transpose(0, 1))
        values = values * scale.view([-1, *[1] * (values.dim() - 1 - channel_dim(layer) % values.dim())])


def _rows(scale: Tensor, layer: nn.Module) -> Tensor:
    """Returns a factor for each filter (C_out,), in the shape in which it multiplies the weight."""
    return scale.view([-1, *[1] * (layer.weight.dim() - 1)])


def _unit_length(weights: list[Tensor]) -> list[Tensor]:
    """Scales the filters of all factors but the last to length 1; the product stays."""
    weights = list(weights)
    for at in range(len(weights) - 1):
        length = weights[at].flatten(1).norm(dim=1).clamp_min(_SHORTEST)
        ones = [1] * (weights[at].dim() - 1)
        weights[at] = weights[at] / length.view(-1, *ones)
        weights[at + 1] = weights[at + 1] * length.view(1, -1, *ones[1:])
    return weights


def _name_of(network: nn.Module, module: nn.Module) -> str:
    return next(name for name, other in network.named_modules() if other is module)
