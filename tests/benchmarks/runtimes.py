"""Opens a contender's file in the runtime that it is for: one function each, all with the same signature."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

# Images (N, C, H, W), float32, N as it was opened for, to logits (N, K).
Run = Callable[[np.ndarray], np.ndarray]


def open_onnxruntime(path: Path, threads: int, batch: int) -> Run:
    """An ONNX file on the CPU; N is free."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def open_openvino(path: Path, threads: int, batch: int) -> Run:
    """OpenVINO's own format, compiled for one stream and this very batch size."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, *list(model.input().partial_shape)[1:]])
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0]


def open_eager(path: Path, threads: int, batch: int) -> Run:
    """A checkpoint of the benchmark's networks, operator by operator in torch."""
    import torch

    from tests.benchmarks.networks import load_network

    torch.set_num_threads(threads)
    network = load_network(path)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def open_inductor(path: Path, threads: int, batch: int) -> Run:
    """An exported program of torchao's quantized operators, frozen and compiled for this very batch size."""
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 (adds its int8 kernels to inductor)
    from torch._inductor import config

    torch.set_num_threads(threads)
    config.freezing = True
    compiled = torch.compile(torch.export.load(path).module(check_guards=False), dynamic=False)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return compiled(torch.from_numpy(images)).numpy()

    return run


RUNTIMES = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "eager": open_eager,
    "inductor": open_inductor,
}
