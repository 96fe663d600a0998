"""Measures what computing a stage costs: energy and CO2, estimated by codecarbon's power model, and GPU memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from compress.evaluation.concurrent_runs import count_concurrent_runs
from compress.evaluation.cuda import PEAK_MEMORY, peak_memory, reset_peak_memory
from compress.evaluation.energy import NOT_INSTALLED
from compress.utils.errors import UserError
from compress.utils.missing import Unavailable

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

ENERGY, CO2 = "training_energy_kwh_estimate", "training_co2_kg_estimate"
TRACKED = (ENERGY, CO2, PEAK_MEMORY)

_SAMPLING_S = 15


@contextmanager
def track_cost(country: str | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measures what the context computes; the dict has the figures when the context ends.

    The energy is that of the whole machine, sampled by a thread: from counters where codecarbon finds any, else
    modelled from the CPU's name and load and the size of the memory. It is unavailable where other runs were under way
    at the start or the end. CO2 follows from the electricity mix of `country`, a code that `require_country` accepts.
    """
    figures: dict[str, Any] = {}
    others = count_concurrent_runs()
    reset_peak_memory(device)
    if find_spec("codecarbon") is None:
        yield figures
        figures |= dict.fromkeys((ENERGY, CO2), Unavailable(NOT_INSTALLED))
    else:
        with TemporaryDirectory() as scratch:
            tracker = _tracker(country, scratch)
            tracker.start()
            try:
                yield figures
            finally:
                tracker.stop()
        others = max(others, count_concurrent_runs())
        shared = Unavailable(f"{others} other runs went on beside it, and the estimate is of the whole machine")
        figures |= dict.fromkeys((ENERGY, CO2), shared) if others else _estimate(tracker)
    figures[PEAK_MEMORY] = peak_memory(device)


def require_country(country: str | None) -> None:
    """Raises UserError for a country whose electricity mix codecarbon, where it is installed, does not know."""
    if country is None or find_spec("codecarbon") is None:
        return
    from codecarbon.input import DataSource

    if country not in DataSource().get_global_energy_mix_data():  # codecarbon itself would take the world's average
        raise UserError(
            f"measure.country={country}",
            "a country's ISO 3166 alpha-3 code, e.g. DEU, FRA or USA",
            "set measure.country to one, or to null for the world's average",
        )


def _tracker(country: str | None, scratch: str) -> "OfflineEmissionsTracker":
    """Returns a tracker that sends and requests nothing, and writes only to `scratch`."""
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    return OfflineEmissionsTracker(
        country_iso_code=country,
        measure_power_secs=_SAMPLING_S,
        log_level="critical",
        allow_multiple_runs=True,  # else it leaves a lock file
        output_dir=scratch,
        # These are set because a .codecarbon.config or an environment variable could change them.
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=None,
        electricitymaps_api_token="",
        cloud_provider=None,
        cloud_region=None,
        region=None,
        tracking_mode="machine",
    )


def _estimate(tracker: "OfflineEmissionsTracker") -> dict[str, Any]:
    # codecarbon logs its own failures and goes on without a result.
    found = getattr(tracker, "final_emissions_data", None)
    if found is None:
        return dict.fromkeys((ENERGY, CO2), Unavailable("codecarbon came to no result"))
    return {ENERGY: found.energy_consumed, CO2: found.emissions}
