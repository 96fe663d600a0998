"""The int8 benchmark's findings as Markdown: a table a network, and each goal with whether it was reached."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from tests.benchmarks.contenders import OURS, Contender
from tests.benchmarks.racing import ratio_of_medians

MOST_TIMES_BEST_PEER = 1.00
LEAST_AGREEMENT_PERCENT = {"resnet20": 99.1, "resnet56": 99.5}


@dataclass
class Score:
    """One contender on the test images, compared with the float network image by image."""

    top1_percent: float
    agreement_percent: float
    delta_points: float
    delta_ci95_points: tuple[float, float]


@dataclass
class Result:
    """All that was measured on one network."""

    network: str
    images: int
    calibration_images: int
    scores: dict[Contender, Score]
    left_out: dict[str, str]  # tool -> reason
    times_ms: dict[tuple[int, int], dict[Contender, list[float]]] = field(default_factory=dict)  # (threads, batch)
    waiting_cpu_percent: float = 0.0

    def fastest_forms(self) -> list[Contender]:
        """One contender a tool: of its forms the one with the least latency, on the fewest threads."""
        times = self.times_ms[min(self.times_ms)]
        best: dict[str, Contender] = {}
        for contender, rounds in times.items():
            rival = best.get(contender.tool)
            if rival is None or statistics.median(rounds) < statistics.median(times[rival]):
                best[contender.tool] = contender
        return list(best.values())

    def best_peer(self, threads: int, batch: int) -> Contender:
        """The fastest of all that are not ours, whatever its form."""
        peers = {who: times for who, times in self.times_ms[threads, batch].items() if who.tool != OURS}
        return min(peers, key=lambda who: statistics.median(peers[who]))

    def ours(self) -> Contender:
        """The project's own contender."""
        return next(who for who in self.scores if who.tool == OURS)

    def as_json(self) -> dict:
        """Everything, for results.json."""
        races = [
            {"threads": threads, "batch": batch, "turns_ms": {who.name: rounds for who, rounds in times.items()}}
            for (threads, batch), times in self.times_ms.items()
        ]
        return {
            "network": self.network,
            "images": self.images,
            "calibration_images": self.calibration_images,
            "left_out": self.left_out,
            "contenders": [
                {"name": who.name, "file_bytes": who.path.stat().st_size, **asdict(score)}
                for who, score in self.scores.items()
            ],
            "races": races,
            "waiting_cpu_percent": self.waiting_cpu_percent,
        }


def report(results: list[Result], facts: dict) -> str:
    """The whole report; `facts` is the environment with date, cores, command and repetitions."""
    versions = facts["versions"]
    names = ("torch", "torchao", "onnxruntime", "openvino", "nncf")
    lines = [
        f"    {facts['command']}",
        "",
        f"{facts['cpu']}, {facts['cores']} cores ({', '.join(facts['cpu_flags'])}), {facts['date']}; "
        + ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
        + ".",
        f"Medians of {facts['repetitions']} rounds of turns at batch 1, a third as many at batch 32; in brackets, "
        "the ratio to the fastest that is not this project's.",
    ]
    for result in results:
        lines += ["", *table(result)]
    lines += ["", "Goals:", ""]
    for result in results:
        lines += [f"- {result.network}: {goal}" for goal in goals(result)]
    return "\n".join(lines)


def table(result: Result) -> Iterator[str]:
    """A row a tool, in Markdown."""
    races = sorted(result.times_ms, key=lambda race: (race[1], race[0]))
    heads = [f"{'ms' if batch == 1 else 'images/s'}, {count(threads, 'thread')}" for threads, batch in races]
    yield f"| {result.network} | top-1 % | points against float (95 %) | agrees % | {' | '.join(heads)} |"
    yield "|---" * (4 + len(heads)) + "|"
    for who in result.fastest_forms():
        score = result.scores[who]
        low, high = score.delta_ci95_points
        cells = [speed(result, who, threads, batch) for threads, batch in races]
        yield (
            f"| {who.name} | {score.top1_percent:.2f} | {score.delta_points:+.2f} ({low:+.2f} to {high:+.2f}) | "
            f"{score.agreement_percent:.2f} | {' | '.join(cells)} |"
        )
    yield ""
    yield (
        f"{result.images} test images, {result.calibration_images} others for calibration. "
        f"A waiting process computed for at most {result.waiting_cpu_percent:.2f} % of its time."
    )
    for tool, reason in result.left_out.items():
        yield f"Left out: {tool}: {reason}."


def speed(result: Result, who: Contender, threads: int, batch: int) -> str:
    """Milliseconds at batch 1, else images a second, with the ratio to the fastest other."""
    times = result.times_ms[threads, batch]
    median, best = statistics.median(times[who]), statistics.median(times[result.best_peer(threads, batch)])
    if batch == 1:
        return f"{median:.2f} ({median / best:.2f}x)"
    return f"{1000 * batch / median:.0f} ({best / median:.2f}x)"


def goals(result: Result) -> Iterator[str]:
    """Each goal with what was found, and whether it was reached or by how much it was missed."""
    ours = result.ours()
    score = result.scores[ours]
    for threads, batch in sorted(result.times_ms):
        if batch != 1:
            continue
        times, best = result.times_ms[threads, batch], result.best_peer(threads, batch)
        ratio, (low, high) = ratio_of_medians(times[ours], times[best])
        yield (
            f"latency on {count(threads, 'thread')} is {ratio:.2f} (95 %: {low:.2f} to {high:.2f}) times that of "
            f"{best.name}; at most {MOST_TIMES_BEST_PEER:.2f}: {verdict(round(ratio, 2) - MOST_TIMES_BEST_PEER)}"
        )
    if result.network in LEAST_AGREEMENT_PERCENT:
        least = LEAST_AGREEMENT_PERCENT[result.network]
        yield (
            f"agrees with float on {score.agreement_percent:.2f} %; at least {least} %: "
            f"{verdict(least - round(score.agreement_percent, 2))}"
        )
    low, high = score.delta_ci95_points
    yield (
        f"top-1 differs from float by {score.delta_points:+.2f} points (95 %: {low:+.2f} to {high:+.2f}); "
        f"no loss outside the interval: {verdict(-high)}"
    )


def verdict(excess: float) -> str:
    """`excess` is how far the goal was missed; 0 or less reaches it."""
    return f"missed by {excess:.2f}" if excess > 1e-9 else "reached"


def count(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
