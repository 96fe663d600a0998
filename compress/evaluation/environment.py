"""Records what a figure depends on besides the network: the CPU and its flags, the GPU, the versions."""

import platform
from importlib.metadata import version
from importlib.util import find_spec

import torch

from compress.utils.cpu import cache_bytes, cpu_flags, cpu_name

_PACKAGES = (
    "compress", "torchvision", "torchao", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "hydra-core",
    "safetensors", "pillow",
)  # fmt: skip


def environment(threads: int) -> dict[str, object]:
    """Returns the `environment` of metrics.json."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "cache_bytes": cache_bytes(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute."""
    own = {"python": platform.python_version(), "torch": torch.__version__}  # torch's own string names its build
    names = (*_PACKAGES, "timm") if find_spec("timm") else _PACKAGES
    return own | {name: version(name) for name in names}
