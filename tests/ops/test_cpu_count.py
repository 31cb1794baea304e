"""Cores that may be used: by affinity, and by the quotas of cgroups."""

import os
from pathlib import Path

import pytest

from xetserve.ops import cpu_count
from xetserve.ops.cpu_count import count_cores


@pytest.mark.parametrize(
    ("own", "quotas", "expected"),
    [
        pytest.param("0::/", {}, 8, id="no quota, as outside"),
        pytest.param("0::/", {"": "max 100000"}, 8, id="no quota, in a container"),
        pytest.param("0::/", {"": "200000 100000"}, 2, id="two"),
        pytest.param("0::/", {"": "250000 100000"}, 3, id="two and a half"),
        pytest.param("0::/", {"": "10000 100000"}, 1, id="a tenth"),
        pytest.param("0::/", {"": "9900000 100000"}, 8, id="more than there are"),
        pytest.param("0::/", {"": ""}, 8, id="an empty file"),
        pytest.param("0::/a.slice/b", {"a.slice/b": "300000 100000"}, 3, id="our own"),
        pytest.param(
            "0::/a/b", {"a/b": "max 100000", "a": "300000 100000"}, 3, id="the one above ours"
        ),
        pytest.param("0::/a/b", {"": "300000 100000"}, 3, id="ours seen from outside"),
        pytest.param("1:cpu:/x", {"x": "100000 100000"}, 8, id="version 1 only"),
        pytest.param(None, {"": "100000 100000"}, 8, id="no cgroups"),
    ],
)
def test_cores_are_those_that_may_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    quotas: dict[str, str],
    expected: int,
) -> None:
    if own is not None:
        (tmp_path / "own").write_text(f"{own}\n")
    for folder, quota in quotas.items():
        (tmp_path / "top" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / folder / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cpu_count, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cpu_count, "CGROUPS", tmp_path / "top")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert count_cores() == expected


def test_there_is_a_core_to_use() -> None:
    assert 1 <= count_cores() <= len(os.sched_getaffinity(0))
