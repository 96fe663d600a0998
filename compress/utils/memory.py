"""Reads how much memory this process may still take."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # versions 2 and 1


def free_bytes(meminfo: Path = _MEMINFO, own_groups: Path = _OWN_GROUPS, cgroups: Path = _CGROUPS) -> int:
    """Returns the memory that the machine, and the limits of this process's control groups, have left.

    Returns 0 where the system does not say.
    """
    if not meminfo.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    return max(0, min([free, *_left_in_groups(own_groups, cgroups)]))


def _left_in_groups(own_groups: Path, cgroups: Path) -> list[int]:
    """Returns what each control group of this process, and each parent, has left; empty without limits."""
    left = []
    for line in own_groups.read_text().splitlines() if own_groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                left += _left(place)
    return left


def _left(group: Path) -> list[int]:
    """Returns the limit of a group without what is used and cannot be freed; empty where it has no limit."""
    for limit, used in _FILES:
        if (group / limit).is_file() and (text := (group / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))  # freed when memory is needed
            return [int(text) - int((group / used).read_text()) + files]
    return []
