"""Importing the Hub's cached answers from an archive, and files on their way into a cache."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from xetserve.base.regular_files import open_regular
from xetserve.cachetools.archive import MAX_META_SIZE, ArchiveError
from xetserve.errors import FormatError
from xetserve.pipeline.cache.layout import META, iter_tree
from xetserve.pipeline.cache.store import CacheStore
from xetserve.upstream.answers.folder import BLOCK, IMPORTED, round_up
from xetserve.upstream.answers.question import REFUSAL, Subject
from xetserve.upstream.answers.stored_file import Stored as Remembered
from xetserve.upstream.answers.stored_file import unpack_file
from xetserve.upstream.imported_answers import check_answer, make_mark


class AnswerImporter:
    """Store answers from an archive, in a folder of their own.

    Args:
        max_size: bytes that they may take, in blocks, with folders; never more than the cache's
            quota.
    """

    def __init__(self, store: CacheStore, max_size: int) -> None:
        self._store = store
        self._folder = store.folder / META
        self._max_size = min(max_size, store.quota.max_size)
        self._marks: dict[str, bytes] = {}
        self._size = BLOCK + sum(
            round_up(stored.size) + BLOCK for stored in iter_tree(self._folder / IMPORTED)
        )

    def take(self, path: str, data: bytes) -> bool:
        """Store an answer; False: this server has one of its own, or a newer imported one.

        Raises:
            FormatError: it is damaged.
            Unwanted: it must not be imported.
            ArchiveError: there is no room for it.
        """
        imported = unpack_file(path, data)
        if imported is None:
            raise FormatError("damaged")
        question = check_answer(path, imported, time.time())
        is_note = question is not None and question.kind == REFUSAL
        if not is_note and os.path.lexists(self._folder / path):
            return False
        if not self._place(path, data, imported.answered_at):
            return False
        if question is not None and not is_note:
            subject = Subject.parse(imported.about)
            assert subject is not None  # since there is a question
            self._marks.update([make_mark(question, subject.realm)])
        return True

    def finish(self) -> None:
        """Write marks for the imported answers, so that a refusal finds them; not where a mark was
        imported.

        Raises:
            ArchiveError: there is no room for them.
        """
        for path, content in self._marks.items():
            self._place(path, content, 0.0)
        self._marks.clear()

    def _place(self, path: str, data: bytes, answered_at: float) -> bool:
        """Put a file in place, unless there is one of the same age or newer."""
        target = self._folder / IMPORTED / path
        present = _read_answer(target, path)
        if present is not None and present.answered_at >= answered_at:
            return False
        cost = round_up(len(data)) + BLOCK
        # Room for a mark of each is kept free.
        if self._size + cost + 2 * BLOCK * len(self._marks) > self._max_size:
            raise ArchiveError(
                f"the Hub's answers need more than {self._max_size} bytes: raise metadata_size"
            )
        with Incoming(self._store, len(data)) as incoming:
            self._store.write(incoming.temporary, data)
            self._store.place_beside(incoming.temporary, str(target))
            incoming.is_placed = True
        self._size += cost
        return True


def _read_answer(target: Path, path: str) -> Remembered | None:
    try:
        with open(open_regular(target), "rb") as file:
            return unpack_file(path, file.read(MAX_META_SIZE))
    except (FileNotFoundError, NotADirectoryError):
        return None


class Incoming:
    """A file that is being written; it is removed in the end, unless it was put in place."""

    def __init__(self, store: CacheStore, size: int) -> None:
        self._store = store
        self._size = size
        self.is_placed = False

    def __enter__(self) -> Self:
        store = self._store
        temporary = store.create(self._size)
        if temporary is None:
            store.quota.sweep(self._size)
            temporary = store.create(self._size)
        if temporary is None:
            raise ArchiveError("the cache or its disk is full: raise cache_size or free disk space")
        self.temporary = temporary
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.is_placed:
            self._store.discard(self.temporary)
        with suppress(OSError):
            os.close(self.temporary.fd)
