import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need_program
from xetserve.http.digests import format_checksum_line, format_repr_digest


def test_the_example_of_rfc_9530() -> None:
    digest = hashlib.sha256(b'{"hello": "world"}\n').hexdigest()
    expected = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    assert format_repr_digest(digest) == expected


@pytest.mark.parametrize(
    "name",
    ["a.bin", "a b", "größe", "back\\slash", "new\nline", "\\n", "*star", " blank", 'quo"te',
     "carriage\rreturn", "a\\\\nb"],
)  # fmt: skip
def test_sha256sum_reads_the_line(tmp_path: Path, name: str) -> None:
    content = name.encode() * 3
    (tmp_path / f"./{name}").write_bytes(content)
    line = format_checksum_line(hashlib.sha256(content).hexdigest(), name)
    command = [need_program("sha256sum"), "--strict", "-c"]
    for text, status in ((line, 0), (line.replace("  ", "  x", 1), 1)):
        done = subprocess.run(
            command, input=text.encode(), cwd=tmp_path, capture_output=True, check=False
        )
        assert (done.returncode == 0) == (status == 0), done.stderr


def test_the_line_is_what_sha256sum_writes(tmp_path: Path) -> None:
    for name in ("a b", "back\\slash", "new\nline"):
        (tmp_path / name).write_bytes(b"x")
        done = subprocess.run(
            [need_program("sha256sum"), name], cwd=tmp_path, capture_output=True, check=True
        )
        assert format_checksum_line(hashlib.sha256(b"x").hexdigest(), name).encode() == done.stdout
