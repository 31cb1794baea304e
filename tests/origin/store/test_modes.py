import pytest

from xetserve.origin.store.modes import MAX_PLAIN_SIZE, SAMPLE_SIZE, is_large_file


@pytest.mark.parametrize(
    ("path", "size", "sample", "expected"),
    [
        pytest.param("a.txt", 5, b"hello", False, id="small text is plain"),
        pytest.param("config.json", 2, b"{}", False, id="json is plain"),
        pytest.param("a.txt", MAX_PLAIN_SIZE + 1, b"hello", True, id="much text is large"),
        pytest.param("a.txt", MAX_PLAIN_SIZE, b"hello", False, id="the limit is plain"),
        pytest.param("a.safetensors", 5, b"hello", True, id="a known suffix is large"),
        pytest.param("sub/A.BIN", 5, b"hello", True, id="a suffix in capitals is large"),
        pytest.param("a.bin", 0, b"", False, id="an empty file is plain whatever its suffix"),
        pytest.param("a", 3, b"a\0b", True, id="a zero byte is large"),
        pytest.param("a.txt", 3, b"a\xffb", True, id="what is not UTF-8 is large"),
        pytest.param("a.txt", 600, ("ä" * 300).encode()[1:], True, id="a broken first character"),
        pytest.param(
            "a.txt", 601, ("x" + "ä" * 300).encode()[:SAMPLE_SIZE], False, id="a cut last character"
        ),
    ],
)
def test_is_large_file(path: str, size: int, sample: bytes, expected: bool) -> None:
    assert is_large_file(path, size, sample) is expected
