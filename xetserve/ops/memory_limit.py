"""The memory that this process and the others of its cgroup may use."""

import contextlib
from pathlib import Path

from xetserve.ops import cpu_count
from xetserve.ops.cpu_count import find_cgroup_folders


def find_memory_limit() -> int | None:
    """Return the smallest limit of this process's cgroup and its ancestors in bytes; None: none.

    Both versions of cgroups are looked at; version 1 is still the default of some engines.
    """
    files = [folder / "memory.max" for folder in find_cgroup_folders()]
    files += [folder / "memory.limit_in_bytes" for folder in _find_old_folders()]
    limits = []
    for file in files:
        # A missing file or "max" means no limit.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text(encoding="utf-8")))
    least = min(limits, default=None)
    return None if least is None or least >= _get_total() else least


def _find_old_folders() -> list[Path]:
    """Return the folders of this process's cgroup of version 1, and of its ancestors."""
    try:
        lines = cpu_count.OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    root = cpu_count.CGROUPS / "memory"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            inner = Path(path.lstrip("/"))
            return [root / inner, *(root / parent for parent in inner.parents)]
    return []


def _get_total() -> int:
    """Return the memory of the machine in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemTotal")
