"""A folder of a cache with something of every kind in it, and a CAS in memory where it came
from.
"""

import hashlib
from pathlib import Path
from typing import Final

from tests.fakes import FakeCas
from tests.pipeline.cache.cached_file import running
from tests.pipeline.reading import FILE
from xetserve.cachetools.verify import Checker
from xetserve.pipeline.cache.blob_file import BlobKey
from xetserve.pipeline.cache.blobs import BlobCache
from xetserve.pipeline.cache.store import CacheStore
from xetserve.upstream.answers.question import Question, make_path
from xetserve.upstream.answers.stored_file import Stored, pack_file
from xetserve.upstream.imported_answers import make_mark

TEXT: Final = b'{"model_type": "test"}\n' * 1000
TEXT_KEY: Final = BlobKey("sha256", hashlib.sha256(TEXT).hexdigest(), len(TEXT))
HUB: Final = "http://hub.example"
QUESTION: Final = Question("0123abcd" * 4, "grant", "model/o/n", "")
META: Final = "meta/" + make_path(QUESTION, HUB)
MARK: Final = make_mark(QUESTION, HUB)


def make_said(
    name: str = META,
    answered_at: float = 1000.0,
    question: Question = QUESTION,
    body: bytes = b"+yes",
) -> bytes:
    """What the Hub answered_at, as a file of that name."""
    return pack_file(name.removeprefix("meta/"), Stored(answered_at, body, question.describe(HUB)))


async def fill(folder: Path) -> None:
    """Read a Xet file, in parts and whole, and one that is not Xet; remember an answer."""
    async with running(folder) as process:
        await process.read(0, 1000)
        await process.cache.settle()  # so that the files are the same every time
        await process.read()

        writer = BlobCache(process.cache).open_writer(TEXT_KEY)
        await writer.write([TEXT])
        writer.close()
    # Windows may overlap what was there before; then a read does not see all of it. The xorb is
    # here as a whole.
    assert Checker(make_store(folder), removes=True).run().unproven == []
    write_file(folder / META, make_said(META))
    write_file(folder / f"meta/{MARK[0]}", MARK[1])


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


async def is_served(folder: Path) -> bool:
    """Tell whether all of it is given without asking for data."""
    cas = FakeCas(FILE)
    async with running(folder, cas) as process:
        assert await process.read(5, 10)  # verified: the ledger is there
        assert await process.read()
        stored = await BlobCache(process.cache).open(TEXT_KEY, 0, len(TEXT))
        assert stored is not None
        async with stored:
            buffer = memoryview(bytearray(len(TEXT)))
            assert await stored.receive_into(buffer, 5.0) == len(TEXT)
            assert bytes(buffer) == TEXT
    return not cas.fetched


def make_store(folder: Path, max_size: int = 1 << 40) -> CacheStore:
    return CacheStore(folder, max_size=max_size, min_free=0)


def files(folder: Path) -> list[Path]:
    """Everything that is under the quota."""
    return sorted(
        path
        for pattern in ("??/*/*.xc", "ledgers/*/*", "plain/*/*")
        for path in folder.glob(pattern)
    )


def tree_of(folder: Path) -> dict[str, bytes]:
    """Everything that is kept, by the path without what is random in it, nor that an answer was
    brought.
    """
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder)).replace("meta/imported/", "meta/")
        if path.is_file() and "/" in name and not name.startswith("tmp/"):
            found[name.rsplit("-", 1)[0] if name.endswith(".xc") else name] = path.read_bytes()
    return found
