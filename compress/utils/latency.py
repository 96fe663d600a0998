"""The latency by which files are compared. Needs no torch."""

from collections.abc import Mapping
from typing import Any


def headline_latency_ms(metrics: Mapping[str, Any]) -> float:
    """Returns the latency of one image, in milliseconds, from metrics.json.

    It is the median of all calls. Where the time depends on the image, because some leave early, it is the mean over
    test images: a median would be the time of one exit.
    """
    return metrics.get("latency_ms_mean", metrics["latency_ms_p50"])
