"""Every classification network of torchvision, and small ones of each timm family, through all stages, untrained.

`python tests/benchmarks/coverage.py` prunes each network, refits it, restores it from its files, quantizes it and runs
the int8 file in ONNX Runtime, in a process of its own; it prints a row a network and a summary, as Markdown. A row
that is already in the folder is not made again, so that a run that was stopped goes on.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it would not find `compress`

from compress.utils.files import read_json, write_json
from compress.utils.units import count_text
from tests.benchmarks.coverage_networks import all_names

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "outputs" / "benchmarks" / "coverage"
LAST_WORDS = 300  # characters of an error that are shown


def main() -> int:
    """Runs the command line; returns 0 only where no network ended in a fault."""
    options = parse(sys.argv[1:])
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.networks or all_names()
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda name: row_of(name, options), names))
    print(table(rows))
    print(f"\n{summary(rows)}")
    return int(any(row["status"] == "fault" for row in rows))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="torchvision/NAME or timm/NAME; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, a thread each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=600, help="that one network may take (%(default)s)")
    parser.add_argument("--again", action="store_true", help="make rows anew that did not end well")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="a JSON file a network")
    return parser.parse_args(arguments)


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one network, from its file or from a process that makes it."""
    file = options.folder / f"{name.replace('/', '_')}.json"
    if file.is_file() and not (options.again and read_json(file)["status"] != "through"):
        return read_json(file)
    command = [sys.executable, "-m", "tests.benchmarks.coverage_worker", name, str(file)]
    started, problem = time.monotonic(), None
    file.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=options.seconds, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if not file.is_file():  # killed from outside, or by a fault of a library in C
            lines = done.stderr.strip().splitlines() or [""]
            problem = f"the process ended with {done.returncode}: {lines[-1][-LAST_WORDS:]}"
    except subprocess.TimeoutExpired:
        problem = f"ran past {options.seconds:.0f} s"
    if problem is not None:
        seconds = time.monotonic() - started
        status = "too slow" if "ran past" in problem else "fault"
        write_json(file, {"name": name, "status": status, "problem": problem, "seconds": seconds})
    row = read_json(file)
    print(f"{name}: {row['status']}, {row['seconds']:.0f} s {row.get('problem') or ''}", file=sys.stderr, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A row a network."""
    lines = [
        "| network | pixels | MACs | pruned to | int8 kernels | agreement | noise | s | problem |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [row["name"], str(row.get("pixels", "")), "", "", "", "", "", f"{row['seconds']:.0f}"]
        if row.get("macs"):
            cells[2], cells[3] = count_text(row["macs"]), f"{100 * row['macs_left'] / row['macs']:.0f} %"
        if row["status"] == "through":
            cells[4] = f"{row['int8_layers']} of {row['layers']}"
            cells[5], cells[6] = f"{row['agreement_percent']:.0f} %", f"{row['noise_percent']:.1f} %"
        problem = f"{row['status']} in {row['stage']}: {row['problem']}" if row.get("stage") else row.get("problem")
        lines.append(f"| {' | '.join(cells)} | {(problem or '').replace('|', '/')} |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """How many networks came through, and what the others ended with."""
    counts = {status: sum(row["status"] == status for row in rows) for status in ("through", "refused", "fault")}
    slow = sum(row["status"] == "too slow" for row in rows)
    through = [row for row in rows if row["status"] == "through"]
    int8, layers = (sum(row[key] for row in through) for key in ("int8_layers", "layers"))
    share = 100 * counts["through"] / max(1, len(rows))
    return (
        f"{counts['through']} of {len(rows)} networks are through ({share:.0f} %), "
        f"{counts['refused']} refused, {counts['fault']} faults, {slow} too slow; "
        f"{int8} of {layers} layers with weights have int8 kernels."
    )


if __name__ == "__main__":
    sys.exit(main())
