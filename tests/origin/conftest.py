"""An origin in a fresh folder, with a clock that a test can move, and a repository in it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.origin.client import Client
from xetserve.origin.app import Origin


@dataclass
class Clock:
    """Unix seconds, moved by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def origin(tmp_path: Path, clock: Clock) -> Origin:
    return Origin(tmp_path / "origin", test_controls=True, clock=clock)


@pytest.fixture
async def client(origin: Origin) -> Client:
    """A client of an open origin, which has the model me/repo."""
    found = Client(origin)
    assert (await found.create_repo("me/repo")).status == 200
    return found
