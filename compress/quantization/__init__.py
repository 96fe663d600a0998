"""Float network in, int8 ONNX file out: a quantizer shaped for ONNX Runtime, on torchao's PT2E flow."""

from compress.quantization.correction import correct
from compress.quantization.export import export_onnx
from compress.quantization.inspect import executed_operators, inspect_quantization, require_quantized
from compress.quantization.pt2e import calibrate, capture, convert, freeze_batch_norm, freeze_observers, prepare

__all__ = [
    "calibrate",
    "capture",
    "convert",
    "correct",
    "executed_operators",
    "export_onnx",
    "freeze_batch_norm",
    "freeze_observers",
    "inspect_quantization",
    "prepare",
    "require_quantized",
]
