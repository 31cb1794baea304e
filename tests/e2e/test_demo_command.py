"""`xetserve demo` as a process: the first command of README."""

import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import clean_environment
from tests.waiting import wait_until
from xetserve.commands.demo.site import make_gguf

DEMO = [sys.executable, "-m", "xetserve", "demo", "--port", "0"]


def test_a_demo_that_ends_after_its_download(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--once"],
        env=clean_environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified; the server's peak memory:" in done.stdout
    # Into a pipe: no bar that is drawn again and again, no colours, nothing that cannot be tried.
    assert not set(done.stdout) & {"\r", "\x1b"}
    assert done.stdout.count("model.safetensors [") == 1
    assert "curl" not in done.stdout
    assert [*tmp_path.iterdir()] == []


def test_a_port_that_is_taken_is_one_sentence_with_advice(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*DEMO[:-1], port],
            env=clean_environment(TMPDIR=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 1
    start = f"xetserve demo: cannot listen on 127.0.0.1:{port}: Address already in use: "
    assert done.stderr.startswith(start)
    assert done.stderr.endswith(", or choose another --port\n")
    assert done.stderr.count("\n") == 1


@contextmanager
def running(folder: Path, **files: int) -> Iterator[subprocess.Popen[bytes]]:
    demo = subprocess.Popen(
        DEMO,
        env=clean_environment(TMPDIR=str(folder), NO_COLOR=""),
        **files,  # type: ignore[call-overload]
    )
    try:
        yield demo
    finally:
        demo.kill()
        demo.wait()


def read_until(descriptor: int, text: bytes) -> bytes:
    """Read until a text has come."""
    data = b""
    while text not in data:
        data += os.read(descriptor, 65536)
    return data


def is_refused(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)):
            return False
    except (ConnectionRefusedError, ConnectionResetError):
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    ours, theirs = os.pipe()
    with running(tmp_path, stdout=theirs) as demo:
        os.close(theirs)
        shown = read_until(ours, b"Ctrl-C").decode()
        ports = [urlsplit(url).port or 0 for url in re.findall(r"http://\S+:\d+", shown)]
        assert len(set(ports)) == 2
        assert any(tmp_path.iterdir())
        demo.send_signal(number)
        wait_until(lambda: all(map(is_refused, ports)))
        wait_until(lambda: not any(tmp_path.iterdir()))
    os.close(ours)
    assert "open in a browser: http://127.0.0.1:" in shown
    assert "tiny-model-F32.gguf" in shown


def test_on_a_terminal_there_are_colours_and_a_bar(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    try:
        with running(tmp_path, stdout=terminal) as demo:
            shown = read_until(leader, b"Ctrl-C")
            demo.send_signal(signal.SIGINT)
            assert demo.wait(timeout=60) == 0
    finally:
        os.close(terminal)
        os.close(leader)
    assert b"\r" + b"model.safetensors [" in shown
    assert b"\x1b[32mverified\x1b[0m" in shown


def test_a_gguf_is_one() -> None:
    tensor = struct.pack("<3f", 1.0, 2.0, 3.0)
    file = make_gguf(tensor)
    assert file[:4] == b"GGUF"
    assert struct.unpack_from("<IQQ", file, 4) == (3, 1, 1)
    assert file.endswith(tensor)
    assert (len(file) - len(tensor)) % 32 == 0
    assert b"general.architecture" in file
