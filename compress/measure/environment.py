"""What a figure depends on besides the network: the CPU and its flags, the GPU, the versions."""

import platform
from importlib.metadata import version
from importlib.util import find_spec
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
    return {
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "versions": versions(),
    }


def cpu_name() -> str:
    """As the system calls it."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that compute."""
    own = {"compress": __version__, "python": platform.python_version(), "torch": torch.__version__}  # with its build
    names = (*_PACKAGES, "timm") if find_spec("timm") else _PACKAGES
    return own | {name: version(name) for name in names}


def cpu_flags() -> list[str]:
    """Which of the flags that decide how int8 is computed this CPU has; empty where the system does not tell."""
    facts = _cpu_facts()
    present = (facts.get("flags") or facts.get("Features") or "").split()
    return [flag for flag in _FLAGS if flag in present]


def _cpu_facts() -> dict[str, str]:
    """/proc/cpuinfo of the last CPU; Linux alone has it."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
