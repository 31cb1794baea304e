"""Stored answers, from the event loop."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from xetserve.upstream.answers.folder import BLOCK
from xetserve.upstream.answers.store import WAIT_COST, AnswerStore
from xetserve.upstream.answers.stored_file import Stored

NAME = "anonymous/ab/cd"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AnswerStore]:
    made = AnswerStore(tmp_path, max_size=100 * BLOCK, max_pending=50_000)
    yield made
    await made.aclose()


class TestStore:
    async def test_writes_keep_their_order(self, store: AnswerStore) -> None:
        for number in range(20):
            store.write(NAME, Stored(float(number), b""))
            store.remove(NAME)
        store.write(NAME, Stored(99.0, b"last"))
        await store.settle()
        assert await store.read(NAME) == Stored(99.0, b"last")
        assert await store.list("anonymous/ab") == ["cd"]

    async def test_what_waits_is_there_already(self, store: AnswerStore) -> None:
        store.write(NAME, Stored(1.0, b"body"))
        assert await store.read(NAME) == Stored(1.0, b"body")
        store.remove(NAME)
        assert await store.read(NAME) is None
        await store.settle()
        assert await store.read(NAME) is None

    async def test_what_waits_is_bounded(self, store: AnswerStore) -> None:
        for number in range(20):
            store.write(f"s/{number}", Stored(1.0, bytes(6000)))
        await store.settle()
        assert 5 < len(await store.list("s")) < 10
        store.write("s/later", Stored(1.0, bytes(1000)))
        await store.settle()
        assert await store.read("s/later") is not None

    async def test_what_is_to_be_removed_counts_and_refusals_have_room_left(
        self, store: AnswerStore
    ) -> None:
        size = 0
        for number in range(10_000):
            store.remove(f"scope/ab/{number}")
            store.remove("scope/ab/again")
            size = max(size, len(store._tasks))
        assert size * WAIT_COST <= 2 * store._max_pending
        assert not store.write("scope/ab/x", Stored(1.0, b""))
        await store.settle()
        while store.write("scope/ab/x", Stored(1.0, bytes(1000))):
            pass
        assert store.write("scope/ab/y", Stored(2.0, b""), is_refusal=True)
        store.remove("scope/ab/x")
        await store.settle()
        assert await store.read("scope/ab/x") is None
        assert await store.read("scope/ab/y") == Stored(2.0, b"")
        assert store._pending == 0

    async def test_a_disk_that_fails_has_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        store = AnswerStore(tmp_path / "file", max_size=100 * BLOCK, max_pending=10_000)
        store.write(NAME, Stored(1.0, b"body"))
        await store.settle()
        assert "cannot write" in caplog.text
        assert await store.read(NAME) is None
        assert await store.list("s") == []
        await store.aclose()

    async def test_closing_finishes_what_waits(self, store: AnswerStore, tmp_path: Path) -> None:
        store.write(NAME, Stored(1.0, b"body"))
        await store.aclose()
        assert (tmp_path / NAME).exists()
        store.write(NAME, Stored(1.0, b"late"))  # and nothing after it
        assert (tmp_path / NAME).read_bytes().endswith(b"body")
