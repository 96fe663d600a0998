"""Reads the CPU's name, its instruction sets, which decide how int8 and bf16 are computed, and its caches."""

import platform
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "asimd", "asimddp", "i8mm",
)  # fmt: skip


def cpu_name() -> str:
    """Returns the name that the system has for the CPU."""
    return _facts().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Returns this CPU's flags that decide how int8 and bf16 are computed; empty where the system lists none."""
    facts = _facts()
    present = (facts.get("flags") or facts.get("Features") or "").split()
    return [flag for flag in _FLAGS if flag in present]


def cache_bytes(caches: Path = CACHES) -> list[int]:
    """Returns the sizes of this CPU's caches of data, the nearest first; empty where the system lists none."""
    files = [path / "size" for path in caches.glob("index*") if (path / "size").is_file()]
    data = [file for file in files if (file.parent / "type").read_text().strip() != "Instruction"]
    return sorted(1024 * int(file.read_text().strip().removesuffix("K")) for file in data)


def _facts() -> dict[str, str]:
    """Returns /proc/cpuinfo of the last CPU; only Linux has that file."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
