"""What the start and doctor say of a machine that is too small."""

import logging

import pytest

from xetserve.commands.serve import wiring
from xetserve.commands.serve.wiring import describe_memory, warn_of_memory
from xetserve.config.load import load_config

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("workers", "budget", "needed"),
    [
        pytest.param("1", "128MiB", 40 + 128 + 32, id="one"),
        pytest.param("4", "128MiB", 40 + 80 + 128 + 32, id="several"),
        pytest.param("64", "128MiB", 40 + 1280 + 512 + 64, id="the least of each budget"),
    ],
)
def test_processes_and_budgets_have_to_fit(workers: str, budget: str, needed: int) -> None:
    config = load_config({"workers": workers, "memory_budget": budget, "body_budget": "32MiB"}, {})
    assert describe_memory(config, needed * MIB) == ("", "")
    assert describe_memory(config, None) == ("", "")
    text, advice = describe_memory(config, needed * MIB - 1)
    assert text.startswith(f"{workers} worker")
    assert "the cgroup's limit is" in text
    assert "lower workers" in advice


def test_workers_that_follow_the_cores_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wiring, "count_cores", lambda: 64)
    monkeypatch.setattr(wiring, "find_memory_limit", lambda: 512 * MIB)
    config = load_config({"workers": "auto"}, {})
    warn_of_memory(config)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "64 workers (workers = auto) may need " in caplog.text
    assert "MemoryMax" in caplog.text
