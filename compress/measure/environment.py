"""What a figure depends on besides the network: the CPU and its flags, the GPU, the versions."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from compress import __version__

# Those that decide how int8 is computed.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_PACKAGES = (
    "torchvision", "torchao", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "hydra-core", "safetensors",
)  # fmt: skip


def environment(threads: int) -> dict[str, object]:
    """The `environment` of metrics.json."""
    name, flags = _cpu()
    return {
        "cpu": name,
        "cpu_flags": flags,
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that compute."""
    own = {"compress": __version__, "python": platform.python_version(), "torch": torch.__version__}  # with its build
    return own | {name: version(name) for name in _PACKAGES}


def _cpu() -> tuple[str, list[str]]:
    """The CPU's name, and which of `_FLAGS` it has; Linux tells, elsewhere the flags are unknown and left empty."""
    source = Path("/proc/cpuinfo")
    if not source.is_file():
        return platform.processor() or platform.machine(), []
    rows = dict(line.split(":", 1) for line in source.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in rows.items()}
    present = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in present]
