"""Counts energy by the CPU's own counters (RAPL, in Intel's CPUs and AMD's since Zen), never by a power model."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
NOT_INSTALLED = 'the package codecarbon is not installed: pip install "compress[energy]"'

_JOULES_PER_KWH = 3.6e6


def no_counter(counters: Path = COUNTERS) -> str | None:
    """Returns why the energy of a file cannot be counted here, and the remedy; None where it can be counted."""
    packages = [folder / "energy_uj" for folder in counters.glob("intel-rapl:*") if folder.name.count(":") == 1]
    if not packages:
        return (
            f"{counters}/intel-rapl:0/energy_uj is not there: virtual machines and containers hide the CPU's counter; "
            "on the machine itself, modprobe intel_rapl_msr"
        )
    for file in packages:
        if not os.access(file, os.R_OK):
            return f"{file} may not be read: sudo chmod a+r {counters}/intel-rapl:*/energy_uj"
    return NOT_INSTALLED if find_spec("codecarbon") is None else None


def count_joules(work: Callable[[], None], counters: Path = COUNTERS) -> float:
    """Returns the joules of all CPU packages while `work` runs, also idle and of other processes; 0: none moved."""
    # codecarbon, not zeus: it has the estimate of `track_cost` too, with each country's electricity mix on disk. zeus
    # requests the mix from a server and watches each counter from a further process. Unlike codecarbon's trackers,
    # this reader does not fall back to a power model.
    from codecarbon.core.cpu import IntelRAPL
    from codecarbon.core.units import Time

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    reader = IntelRAPL(rapl_dir=str(counters))
    reader.start()
    work()
    found = reader.get_cpu_details(Time(seconds=1))  # only its power, which is not read here, depends on the time
    return _JOULES_PER_KWH * sum(kwh for name, kwh in found.items() if name.startswith("Processor Energy Delta"))
