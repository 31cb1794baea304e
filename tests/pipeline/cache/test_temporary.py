"""Files that are being written: their size and room from the start."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from xetserve.pipeline.cache import temporary as temporary_module
from xetserve.pipeline.cache.temporary import open_temporary

SIZE = 3 * 1024 * 1024


def fail_with(code: int) -> object:
    def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
        ctypes.set_errno(code)
        return -1

    return fallocate


def size_of_new(folder: Path) -> int:
    temporary = open_temporary(folder, SIZE)
    assert temporary is not None
    try:
        return os.fstat(temporary.fd).st_size
    finally:
        os.close(temporary.fd)


def test_a_new_file_has_room_on_the_disk(tmp_path: Path) -> None:
    temporary = open_temporary(tmp_path, SIZE)
    assert temporary is not None
    status = os.fstat(temporary.fd)
    os.close(temporary.fd)
    assert (status.st_size, temporary.size) == (SIZE, SIZE)
    assert 512 * status.st_blocks >= SIZE


def test_an_empty_file(tmp_path: Path) -> None:
    temporary = open_temporary(tmp_path, 0)
    assert temporary is not None
    os.close(temporary.fd)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_room_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(temporary_module, "_fallocate", fail_with(code))
    assert size_of_new(tmp_path) == SIZE


def test_a_c_library_without_the_call_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_module, "_fallocate", None)
    assert size_of_new(tmp_path) == SIZE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_noticed_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(temporary_module, "_fallocate", fail_with(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        open_temporary(tmp_path, SIZE)
    assert list(tmp_path.iterdir()) == []
