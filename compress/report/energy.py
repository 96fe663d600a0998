"""The energy of each stage: what was counted, what is an estimate, and where the estimate and the time disagree."""

from dataclasses import dataclass
from itertools import combinations

from compress.report.run_files import RunRecord, StageRecord
from compress.utils.units import three_digits

ESTIMATE = "estimated_energy_mj_per_image"

_COUNTED = ("energy_joule_per_image", "training_energy_kwh_estimate", "training_co2_kg_estimate")
_SAME = 1.05  # a smaller ratio of times or of energies is no order


@dataclass(frozen=True)
class EnergyRow:
    """A row of the table of energy."""

    name: str
    image_mj: str  # read from a counter
    training_wh: str  # an estimate
    training_co2_g: str  # an estimate


def energy_rows(run: RunRecord) -> list[EnergyRow]:
    """Returns a row for each stage, in their order; no row where no stage has any of these figures."""
    found = [[stage.metrics.get(name) for name in _COUNTED] for stage in run.stages]  # older runs lack some
    if all(figure is None for row in found for figure in row):
        return []
    return [EnergyRow(stage.name, *map(_thousandths, row)) for stage, row in zip(run.stages, found, strict=True)]


def estimate_text(stage: StageRecord) -> str:
    """Returns the estimated energy of an image in mJ, a dash where it was not taken; empty in a run of before it."""
    if ESTIMATE not in stage.metrics:
        return ""
    estimate = stage.metrics[ESTIMATE]
    return "–" if estimate is None else three_digits(estimate)


def disagreements(run: RunRecord) -> list[str]:
    """Returns a sentence for each two stages of which the one with less estimated energy has the slower file."""
    return [
        sentence
        for one, other in combinations([stage for stage in run.stages if stage.metrics.get(ESTIMATE)], 2)
        for less, more in ((one, other), (other, one))
        if (sentence := _disagreement(less, more))
    ]


def _disagreement(less: StageRecord, more: StageRecord) -> str:
    """Returns a sentence where `less` has less estimated energy than `more` and is slower; else no text.

    What is compared is the speed against the teacher's file, because each stage was timed in turns with that.
    """
    energies, speeds = ([stage.metrics[key] for stage in (less, more)] for key in (ESTIMATE, "speedup_vs_teacher"))
    if energies[1] < _SAME * energies[0] or speeds[1] < _SAME * speeds[0]:
        return ""
    return (
        f"Estimate and latency disagree: {less.short} has less estimated energy than {more.short} "
        f"({three_digits(energies[0])} against {three_digits(energies[1])} mJ, an estimate), and is slower "
        f"({speeds[0]:.2f}× against {speeds[1]:.2f}× the teacher's speed)."
    )


def _thousandths(value: float | None) -> str:
    if value is None:
        return "–"
    return three_digits(1000 * value) if value >= 1e-6 else "< 0.001"
