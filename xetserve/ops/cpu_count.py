"""CPU count: the cores that this process may use."""

import contextlib
import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")


def count_cores() -> int:
    """Return the number of usable cores: CPU affinity, limited by cgroup quotas (rounded up)."""
    num_cores = len(os.sched_getaffinity(0))
    for folder in find_cgroup_folders():
        # A missing file or "max" means no quota.
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            num_cores = min(num_cores, -(-int(quota) // int(period)))
    return max(1, num_cores)


def find_cgroup_folders() -> list[Path]:
    """Return the folders of this process's cgroup (version 2) and of its ancestors.

    In a container, the own cgroup may appear as the root.
    """
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [CGROUPS / path, *(CGROUPS / parent for parent in Path(path).parents)]
