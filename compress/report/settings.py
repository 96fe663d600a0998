"""What a user needs to repeat a run: command line, settings that are not the default, versions and digests."""

import shlex
from dataclasses import dataclass
from typing import Any

from compress.config.options import as_typed, describe
from compress.config.schema import Config
from compress.report.run_files import RunRecord

_SHOWN_DIGESTS = ("model.onnx", "model.safetensors")


@dataclass(frozen=True)
class Setting:
    """A setting of the run and its default."""

    name: str
    value: str
    default: str
    meaning: str


def command(run: RunRecord) -> str | None:
    """Returns the command line with all automatic settings pinned; None where the run was started otherwise."""
    if run.overrides is None:
        return None
    typed = {override.split("=")[0] for override in run.overrides}
    pinned = [f"{name}={value}" for name, value in _automatic_settings(run).items() if name not in typed]
    return f"python -m compress {shlex.join([*run.overrides, *pinned])}"


def _automatic_settings(run: RunRecord) -> dict[str, Any]:
    """Returns the values that a run chose for its machine (threads=0, device=auto, quantize.target=auto)."""
    found = {"threads": run.last.record["threads"], "device": run.last.record["device"]}
    quantization = run.last.spec["quantization"]
    return found | ({"quantize.target": quantization["target"]} if quantization else {})


def changed_settings(run: RunRecord) -> list[Setting]:
    """Returns the settings that are not the default, in the order of the config."""
    defaults = {name: (as_typed(value), text) for name, value, text in describe(Config())}
    rows = []
    for name, value in flat(run.config).items():
        default, meaning = defaults.get(name, ("–", "a setting that this version has not"))
        if value != default:
            rows.append(Setting(name, value, default, meaning))
    return rows


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns {"prune.ratio": "0.5", ...}: values as users type them."""
    found: dict[str, str] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: as_typed(value)}
    return found


def versions(run: RunRecord) -> dict[str, str]:
    return run.last.record["versions"]


def digests(run: RunRecord) -> list[tuple[str, str]]:
    """Returns (file, SHA-256) of the networks of each stage."""
    return [
        (f"{stage.name}/{name}", stage.record["files"][name])
        for stage in run.stages
        for name in _SHOWN_DIGESTS
        if name in stage.record["files"]
    ]
