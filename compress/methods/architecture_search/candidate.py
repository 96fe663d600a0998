"""A sub-network as plain numbers, which a file can hold and from which it is built."""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """What is left of a network. Two candidates are equal where their networks are."""

    left: tuple[int, ...]  # channels of each group, in the order of `SearchSpace.groups`
    without: tuple[str, ...] = ()  # residual blocks in whose place their input goes on
    kernels: tuple[tuple[str, int], ...] = ()  # layers with a smaller kernel than before, and its side in pixels
    input_size: int | None = None  # pixels a side to which images are resized; None: they are not

    def record(self) -> dict[str, Any]:
        """Returns it as values of JSON."""
        return asdict(self) | {"left": list(self.left), "without": list(self.without), "kernels": dict(self.kernels)}

    def changes(self) -> dict[str, Any]:
        """Returns what model.json holds of it beside the widths of layers."""
        return {"left_out_blocks": list(self.without), "kernels": dict(self.kernels)}

    @property
    def key(self) -> str:
        """Returns a text that is the same for equal candidates and no others."""
        return json.dumps(self.record(), sort_keys=True)

    @staticmethod
    def from_record(record: dict[str, Any]) -> "Candidate":
        """Returns the candidate of which `record` returned these values."""
        kernels = tuple(sorted(record["kernels"].items()))
        return Candidate(tuple(record["left"]), tuple(record["without"]), kernels, record["input_size"])
