"""Takes a trained network to int8: capture, prepare, calibrate or train, convert."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from compress.methods.quantization.equalization import Equalization, equalize
from compress.methods.quantization.fake_quantize import RuntimeFakeQuantize, WeightFakeQuantize
from compress.methods.quantization.quantizer import RuntimeQuantizer
from compress.methods.quantization.rewrites import (
    batch_norm_as_convolution,
    flatten_linear_inputs,
    hard_sigmoid_as_sum,
    name_weights,
    quantize_biases,
    requantize_moves,
    split_gated_activations,
)
from compress.models.graph.aten_patterns import tensor_of, weight_name, weighted_calls
from compress.models.graph.batch_norm import conv_batch_norms, lift_modules, lower_conv_batch_norm, remove_dropout
from compress.models.graph.capture import capture, restore_switches


def prepare(
    network: nn.Module,
    example: Tensor,
    weight_bits: int,
    qat: bool,
    calibration: str = "min_max",
) -> GraphModule:
    """Inserts observers (PTQ) or fake quantization (QAT) into a copy of `network`, to calibrate or to train it.

    `example` is (N, C, H, W). `calibration` is a name in `ACTIVATION_OBSERVERS`; QAT has a moving average of its own.

    Its `state_dict()`, loaded into a module prepared anew from the same network, converts to the same int8 network
    bit for bit. Calibrate before the first forward pass in eval mode, for QAT too: until then there are no ranges.
    """
    module = _capture_for_int8(network, example)
    quantizer = RuntimeQuantizer(weight_bits, qat, calibration)
    if qat:
        for block in conv_batch_norms(module):
            block.weight_quantizer = quantizer.weight_quantizer()
    else:
        lower_conv_batch_norm(module)
    return _insert_observers(module, quantizer).train(qat)


def prepare_equalized(
    network: nn.Module, example: Tensor, weight_bits: int, qat: bool, calibration: str = "min_max"
) -> tuple[GraphModule, Equalization]:
    """Evens out the ranges of channels, then inserts observers as `prepare` does; returns also what was equalized.

    Raises ValueError for QAT.
    """
    if qat:
        raise ValueError("received qat=True to equalize; expected qat=False: training keeps batch norm apart")
    module = _capture_for_int8(network, example)
    lower_conv_batch_norm(module)
    equalization = equalize(module)
    return _insert_observers(module, RuntimeQuantizer(weight_bits, qat, calibration)).train(qat), equalization


def _capture_for_int8(network: nn.Module, example: Tensor) -> GraphModule:
    """Captures `network` in the forms that have int8 kernels, with batch norm and dropout as modules."""
    module = capture(network, example)
    split_gated_activations(module)
    flatten_linear_inputs(module)
    batch_norm_as_convolution(module)
    lift_modules(module)
    return module


def _insert_observers(module: GraphModule, quantizer: RuntimeQuantizer) -> GraphModule:
    with quiet():
        module = prepare_pt2e(module, quantizer)
    restore_switches(module)
    name_shared_modules_once(module)
    return module


def calibrate(prepared: GraphModule, batches: Iterable[Tensor]) -> None:
    """Observes the ranges of weights and activations on `batches` of (N, C, H, W), in eval mode."""
    was_training = prepared.training
    prepared.eval()
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            module.train()
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    prepared.train(was_training)


def convert(prepared: GraphModule) -> GraphModule:
    """Returns the int8 network, with explicit quantize and dequantize operators. `prepared` does not change.

    Raises ValueError where a tensor was never observed.
    """
    module = copy.deepcopy(prepared)
    require_ranges(module)
    lower_conv_batch_norm(module)
    remove_dropout(module)
    measure_weights(module)
    names = [weight_name(node) for node in weighted_calls(module)]
    with quiet():
        module = convert_pt2e(module)
    restore_switches(module)
    name_weights(module, names)
    requantize_moves(module)
    hard_sigmoid_as_sum(module)
    quantize_biases(module)
    return module.eval()


def without_rounding(prepared: GraphModule) -> GraphModule:
    """Returns the float network inside: batch norm folded, without rounding. `prepared` does not change."""
    module = copy.deepcopy(prepared)
    lower_conv_batch_norm(module)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(module.get_submodule(node.target), (ObserverBase, FakeQuantizeBase)):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module.eval()


def freeze_batch_norm(prepared: GraphModule) -> None:
    """Folds batch norm for the rest of the training: its statistics stay, its scale and shift go on learning."""
    for block in conv_batch_norms(prepared):
        block.frozen = True


def freeze_observers(prepared: GraphModule) -> None:
    """Keeps the activations' ranges for the rest of the training. A weight's scale goes on following the weight."""
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            module.disable_observer()


def require_ranges(prepared: GraphModule) -> None:
    """Raises ValueError, with the name of the first, where an observer saw no value yet."""
    for name, module in prepared.named_modules():
        if isinstance(module, ObserverBase) and not bool(module.min_val.numel() and module.min_val.isfinite().all()):
            raise ValueError(
                f"received a prepared network whose {name} observed nothing; expected a calibrated or trained one; "
                "call calibrate(prepared, batches) first"
            )


def measure_weights(module: GraphModule) -> None:
    """Computes the scale of each fake-quantized weight anew: the last optimizer step came after the last forward."""
    for node in module.graph.nodes:
        quantizer = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(quantizer, WeightFakeQuantize):
            quantizer(tensor_of(node.args[0], module))


def name_shared_modules_once(module: GraphModule) -> None:
    """Gives an observer that several tensors share a single name, so that its state is saved once."""
    readers: dict[nn.Module, list[Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            readers.setdefault(module.get_submodule(node.target), []).append(node)
    for shared, nodes in readers.items():
        for node in nodes[1:]:
            if node.target != nodes[0].target:
                module.delete_submodule(node.target)
            node.target = nodes[0].target
        if len(nodes) > 1 and isinstance(shared, RuntimeFakeQuantize):
            shared.share(len(nodes))
    module.recompile()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torchao's deprecation warnings about its own code in a block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield
