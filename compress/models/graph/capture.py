"""Captures a network as a graph of aten operators in normal forms."""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.models.graph.normal_forms import (
    attention_with_heads,
    fold_computed_weights,
    make_functional,
    pad_by_numbers,
    pool_without_padding,
    products_as_linear,
)


def capture(network: nn.Module, example: Tensor) -> GraphModule:
    """Captures `network` in eval mode as aten operators, for any batch size; `example` is (N, C, H, W).

    It copies the network first, so that the graph shares no tensor with it.
    """
    network = copy.deepcopy(network).eval()
    pair = example[:1].repeat(2, 1, 1, 1)  # a batch of one would fix the batch size at one
    with warnings.catch_warnings():
        # Old weight and spectral norm cause it: each forward pass computes their weight, which is a plain attribute.
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        program = torch.export.export(network, (pair,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    module = program.module(check_guards=False)
    restore_switches(module)
    make_functional(module)
    pad_by_numbers(module)
    pool_without_padding(module)
    attention_with_heads(module)
    products_as_linear(module)
    fold_computed_weights(module)
    return module


def restore_switches(module: GraphModule) -> None:
    """Lets train() and eval() of an exported module work, which export replaces by functions that raise.

    Both are correct here: every operator that differs between the two is a module of the graph.
    """
    module.__dict__.pop("train", None)
    module.__dict__.pop("eval", None)
