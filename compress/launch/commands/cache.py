"""`python -m compress cache`: lists the cached stages, verifies their files and removes old ones."""

import argparse
import sys
import time
from pathlib import Path

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table

from compress.config.schema import CacheConfig
from compress.pipeline.cache import Cache
from compress.utils.units import size_text


def main(arguments: list[str] | None = None) -> int:
    """Runs `arguments`, which default to those of the process; returns 0, or 1 where `verify` found a damaged stage."""
    options = _parse(arguments)
    cache = Cache(options.dir)
    if options.task == "list":
        _list(cache)
    elif options.task == "verify":
        whole, damaged = cache.verify()
        print(f"{whole} stages are whole, {len(damaged)} are not")
        for path in damaged:
            print(f"set aside: {path}")
        return int(bool(damaged))
    else:
        removed = cache.prune(options.max_gb * 1e9)
        freed, left = (sum(entry.size_bytes for entry in some) for some in (removed, cache.entries()))
        print(f"removed {len(removed)} stages, {size_text(freed)}; left: {size_text(left)}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compress cache", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path(CacheConfig().dir), help="cache.dir of the runs (%(default)s)")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("list", help="a line a stage, the one used last first")
    tasks.add_parser("verify", help="reads every file; a stage with one that changed is set aside")
    prune = tasks.add_parser("prune", help="removes the stages that were not used for longest")
    prune.add_argument("--max-gb", type=float, required=True, help="what may stay, in gigabytes")
    return parser.parse_args(arguments)


def _list(cache: Cache) -> None:
    entries = cache.entries()
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("key", "stage", "network", "size", "made in", "last used"):
        table.add_column(heading, justify="right" if heading in ("size", "made in") else "left", no_wrap=True)
    for entry in entries:
        settings = entry.record["config"]
        table.add_row(
            entry.key[:12],
            entry.record["inputs"]["stage"],
            settings["teacher"]["model"],
            size_text(entry.size_bytes),
            f"{entry.record['duration_s']:.0f} s",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s)),
        )
    get_console().print(table)
    print(f"{len(entries)} stages, {size_text(sum(entry.size_bytes for entry in entries))} in {cache.folder}")


if __name__ == "__main__":
    sys.exit(main())
