"""The limits of memory of both versions of cgroups."""

from pathlib import Path

import pytest

from xetserve.ops import cpu_count
from xetserve.ops.memory_limit import find_memory_limit

UNLIMITED_V1 = "9223372036854771712"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        pytest.param("0::/", {}, None, id="outside"),
        pytest.param("0::/", {"memory.max": "max"}, None, id="no limit, in a container"),
        pytest.param("0::/", {"memory.max": "1000"}, 1000, id="in a container"),
        pytest.param("0::/a/b", {"a/b/memory.max": "3000", "a/memory.max": "2000"}, 2000,
                     id="the one above ours"),
        pytest.param("0::/", {"memory.max": UNLIMITED_V1}, None, id="more than the machine has"),
        pytest.param("4:memory:/docker/x", {"memory/memory.limit_in_bytes": "5000"}, 5000,
                     id="version 1 in a container"),
        pytest.param("4:cpu,memory:/a.slice", {"memory/a.slice/memory.limit_in_bytes": "6000"},
                     6000, id="version 1"),
        pytest.param("4:memory:/a", {"memory/a/memory.limit_in_bytes": UNLIMITED_V1}, None,
                     id="version 1 without a limit"),
        pytest.param("4:cpu:/a", {"memory/a/memory.limit_in_bytes": "7000"}, None,
                     id="version 1 without memory"),
        pytest.param(None, {"memory.max": "1000"}, None, id="no cgroups"),
    ],
)  # fmt: skip
def test_the_smallest_limit_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    limits: dict[str, str],
    expected: int | None,
) -> None:
    if own is not None:
        (tmp_path / "own").write_text(f"{own}\n")
    for name, limit in limits.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    monkeypatch.setattr(cpu_count, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cpu_count, "CGROUPS", tmp_path / "cgroups")
    assert find_memory_limit() == expected
