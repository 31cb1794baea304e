"""The demo's processes: an origin with a generated repository, the server, and one download.

Origin and server are separate processes, started with the command lines that a user would type. The
speed and peak memory that the demo prints are therefore those of the server alone. They end when
the demo dies, and a shell removes the folder: kill -9 leaves nothing behind.
"""

import asyncio
import ctypes
import hashlib
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.errors import BrokenStream, XetserveError
from xetserve.net.pool import ConnectionPool
from xetserve.net.proxies import ProxyRules
from xetserve.net.tls import make_client_context
from xetserve.net.url import parse_url

REPO: Final = "demo/tiny-model"
FILE: Final = "model.safetensors"
GGUF_FILE: Final = "tiny-model-F32.gguf"
TOKEN: Final = "hf_demo"
TIMEOUT: Final = 30.0
ONE: Final = ("--workers", "1")  # the peak memory shown is that of one process
_LISTENING: Final = re.compile(rb"listening on (http://\S+?:\d+)")


class DemoFailed(XetserveError):
    """A part of the demo failed."""


class Screen:
    """Standard output: plain text, with colours and a progress bar if it is a terminal.

    Args:
        write: writes a text at once.
    """

    def __init__(self, write: Callable[[str], object], *, is_terminal: bool) -> None:
        self.write = write
        self.is_terminal = is_terminal
        self._has_colours = is_terminal and not os.environ.get("NO_COLOR")

    def strong(self, text: str) -> str:
        """Return a text in bold."""
        return self._paint(text, "1")

    def good(self, text: str) -> str:
        """Return a text in green."""
        return self._paint(text, "32")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._has_colours else text


class Original(NamedTuple):
    """The generated file: its size in bytes, and its SHA-256 in hex."""

    size: int
    sha256: str


def make_repository(folder: Path) -> Original:
    """Fill a folder with typical content: tensors, text, incompressible and repeated data."""
    source = random.Random(20261121)
    weights = array("f", (source.gauss(0, 0.02) for _ in range(500_000))).tobytes()
    noise = source.randbytes(2_000_000)
    words = [
        source.choice(["xorb", "chunk", "term", "range", "hash", "window", "byte"])
        for _ in range(1000)
    ]
    text = " ".join(source.choices(words, k=300_000)).encode()
    folder.mkdir(parents=True, exist_ok=True)
    layers = [weights, noise, weights[:1_500_000], weights, noise[:700_000], bytes(1_000_000)] * 3
    model = b"".join(layers)
    (folder / FILE).write_bytes(model)
    (folder / "corpus.txt.bin").write_bytes(text)
    (folder / "tokens with spaces.bin").write_bytes(noise + text[:500_000] + noise)
    (folder / "config.json").write_text('{"model_type": "demo"}\n')
    (folder / "README.md").write_text("# A generated repository\n")
    (folder / GGUF_FILE).write_bytes(make_gguf(weights))
    return Original(len(model), hashlib.sha256(model).hexdigest())


def make_gguf(tensor: bytes) -> bytes:
    """Return a GGUF file (version 3) with one tensor of 32-bit floats.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)  # version, tensors, pairs of metadata
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")  # 8: a string
    # One dimension, type 0 (F32), at offset 0 of the data.
    head += text("token_embd.weight") + struct.pack("<IQIQ", 1, len(tensor) // 4, 0, 0)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + tensor


async def run_demo(host: str, port: int, *, once: bool, screen: Screen) -> None:
    """Run the demo until a signal; with once, until the download is complete.

    Raises:
        DemoFailed: a process did not start, or the downloaded file differs from the original.
    """
    write = screen.write
    with _temporary_folder() as folder:
        write("generating a repository ...\n")
        original = await asyncio.to_thread(make_repository, folder / "repository")
        origin = ("origin", str(folder / "origin"), "--host", "127.0.0.1", "--port", "0")
        imports = ("--import", f"{REPO}={folder / 'repository'}")
        async with _running(*origin, *imports) as (origin_url, _):
            write(f"origin (Hub and CAS)   {origin_url}\n")
            serve = ("serve", "--host", host, "--port", str(port), "--hub-url", origin_url, *ONE)
            async with _running(*serve) as (url, pid):
                url = url.replace("0.0.0.0", "localhost").replace("[::]", "localhost")
                write(f"xetserve               {url}\n\n")
                await _download(url, pid, original, screen)
                if not once:
                    stop = _catch_signals()
                    _write_examples(url, screen)
                    await stop.wait()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder that a shell removes when this process ends, whatever ends it."""
    folder = tempfile.mkdtemp(prefix="xetserve-demo-")
    # The shell waits for the end of its input, which comes when the last writer has gone. It is
    # in a session of its own: Ctrl-C is not for it.
    command = ["sh", "-c", 'read -r _; rm -rf -- "$1"', "sh", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield Path(folder)


def _die_with_parent() -> None:
    """Make the kernel send SIGTERM to this new process when its parent dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@asynccontextmanager
async def _running(*arguments: str) -> AsyncIterator[tuple[str, int]]:
    """Run a xetserve command; yield its URL and process id once it listens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xetserve", *arguments),
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=_die_with_parent,
    )
    assert process.stderr is not None
    lines: list[bytes] = []
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(TIMEOUT):
            async for line in process.stderr:
                lines.append(line)
                if match := _LISTENING.search(line):
                    break
            else:
                raise DemoFailed(_describe_end(arguments[0], b"".join(lines).decode()))
        # Keep reading the log: if the pipe is full, the process blocks.
        reading = asyncio.create_task(_discard(process.stderr))
        yield match[1].decode(), process.pid
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        if reading is not None:
            await reading


def _describe_end(command: str, log: str) -> str:
    """Return why a command ended: its error if it printed one, otherwise its whole log."""
    last = log.rstrip().rpartition("\n")[2]
    error = last.removeprefix("xetserve: ")
    return error if error != last else f"`xetserve {command}` ended: {log.rstrip()}"


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


async def _download(url: str, pid: int, original: Original, screen: Screen) -> None:
    """Download the file through a socket, draw the progress, and compare it with the original."""
    write = screen.write
    pool = ConnectionPool(
        tls=make_client_context(), proxies=ProxyRules({}), connect_timeout=TIMEOUT
    )
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(256 * 1024))
    done, started, shown = 0, time.monotonic(), 0.0
    target = parse_url(f"{url}/download/{REPO}/{FILE}")
    headers = [("Authorization", f"Bearer {TOKEN}")]
    try:
        async with pool.request("GET", target, headers, timeout=TIMEOUT) as response:
            if response.status != 200:
                raise DemoFailed(f"the server answered {response.status}")
            while count := await response.receive_into(buffer, TIMEOUT):
                digest.update(buffer[:count])
                done += count
                if screen.is_terminal and time.monotonic() - shown > 0.05:
                    shown = time.monotonic()
                    write("\r" + _bar(done, original.size, shown - started))
    except (BrokenStream, TimeoutError) as exc:
        raise DemoFailed(f"the download broke off: {exc}") from exc
    finally:
        await pool.aclose()
    start_of_line = "\r" if screen.is_terminal else ""
    write(start_of_line + _bar(done, original.size, time.monotonic() - started) + "\n")
    if digest.hexdigest() != original.sha256:
        raise DemoFailed("the downloaded file differs from the original")
    write(f"sha256 {digest.hexdigest()}\n")
    write(f"{screen.good('verified')}; the server's peak memory: {_peak_memory(pid)}\n")


def _bar(done: int, size: int, seconds: float) -> str:
    filled = 30 * done // size
    speed = done / max(seconds, 1e-3) / 1e6
    return f"{FILE} [{'#' * filled:.<30}] {done / 1e6:6.1f} MB {speed:6.1f} MB/s"


def _peak_memory(pid: int) -> str:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return f"{int(match[1]) / 1024:.0f} MiB" if match else "unknown"


def _write_examples(url: str, screen: Screen) -> None:
    fail = "--fail-with-body"
    token = f'-H "Authorization: Bearer {TOKEN}"'
    download = f"{url}/download/{REPO}"
    screen.write(
        f"""
{screen.strong("open in a browser:")} {url}/

{screen.strong("try in another terminal:")}
  curl {fail} {url}/{REPO}/resolve/main/{FILE} -o {FILE}
  curl {fail} {url}/{REPO}/resolve/main/{GGUF_FILE} -o {GGUF_FILE}
  curl {fail} {token} "{download}/{FILE}?length=1" -o {FILE}
  curl {fail} {token} -OJ "{download}/tokens%20with%20spaces.bin"
  curl -I {token} {download}/config.json
  curl {url}/health

serving until Ctrl-C
"""
    )


def _catch_signals() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT will set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
