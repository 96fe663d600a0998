"""Measures on a GPU: the latency of a stage's float network by CUDA events, and the memory that computing it took."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.utils.missing import Unavailable

LATENCIES = ("cuda_latency_ms_p50", "cuda_latency_ms_p95")
PEAK_MEMORY = "cuda_peak_memory_bytes"

_NO_GPU = Unavailable("the stage ran on the CPU")
_WARM_UP = 10


def cuda_latency(folder: Path, shape: tuple[int, int, int], device: torch.device, calls: int) -> dict[str, Any]:
    """Returns the milliseconds of one image of `shape` (C, H, W) through the float network of the stage in `folder`."""
    if device.type != "cuda":
        return dict.fromkeys(LATENCIES, _NO_GPU)
    from compress.methods.restore import restore_float  # takes seconds, which a run that measures nothing saves

    network = restore_float(folder).to(device, memory_format=torch.channels_last)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    times = time_calls(network, image.to(device, memory_format=torch.channels_last), calls)
    return dict(zip(LATENCIES, (statistics.median(times), float(np.percentile(times, 95))), strict=True))


def time_calls(network: nn.Module, image: torch.Tensor, calls: int) -> list[float]:
    """Returns the milliseconds of each call, after some untimed ones; `image` (1, C, H, W) is on a CUDA device.

    The GPU is idle before each call, so that launching kernels, which often limits a single image, counts too.
    """
    times = []
    with torch.inference_mode():
        for call in range(-_WARM_UP, calls):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            network(image)
            end.record()
            end.synchronize()
            if call >= 0:
                times.append(start.elapsed_time(end))
    return times


def reset_peak_memory(device: torch.device) -> None:
    """Makes `peak_memory` count from here on."""
    if device.type == "cuda":
        torch.cuda.init()  # before this there is no allocator, and resetting it fails
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | Unavailable:
    """Returns the most bytes that torch's tensors held on `device` since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _NO_GPU
