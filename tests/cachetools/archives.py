"""Archives of a cache folder in memory: export one, import it elsewhere."""

import io
from pathlib import Path

from tests.pipeline.cache.filled import make_store, tree_of
from xetserve.cachetools.archive import Counted
from xetserve.cachetools.archive_reader import Importer
from xetserve.cachetools.archive_writer import write_archive
from xetserve.pipeline.cache.store import prepare_folder

LEFT_OUT: list[str] = []  # answers that the last imports did not take, and why


def export(folder: Path, **options: object) -> bytes:
    """Return a folder's archive."""
    stream = io.BytesIO()
    write_archive(make_store(folder), stream, version="1", **options)  # type: ignore[arg-type]
    return stream.getvalue()


def take_in(
    data: bytes, folder: Path, max_size: int = 1 << 40, max_answers: int = 1 << 30
) -> Counted:
    """Import an archive; check that it leaves no temporary file, and that the quota has it."""
    prepare_folder(folder)
    try:
        importer = Importer(
            make_store(folder, max_size),
            max_answers=max_answers,
            on_skip=lambda name, reason: LEFT_OUT.append(f"{name}: {reason}"),
        )
        return importer.run(io.BytesIO(data))
    finally:
        assert list((folder / "tmp").iterdir()) == []
        kept = [data for name, data in tree_of(folder).items() if not name.startswith("meta/")]
        assert make_store(folder).quota.get_usage() == sum(map(len, kept))
