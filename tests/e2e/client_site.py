"""A model and a dataset that clients of all kinds download through a server: large and small files,
Xet and plain.
"""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import OriginControl, Process
from tests.e2e.hub import TOKEN

MODEL = "tester/clients"
SECRET = "tester/secret-clients"  # the same files, for its owner only
KERNEL = "tester/kernel"  # what is quants/ of the others, as a build
BUCKET = "tester/bucket"  # the same
PAST = "tester/past"  # what was quants/ of the others, and has changed since
MANY = "tester/many"  # with more files than the Hub lists in a page
NUM_MANY = 2_500
LARGE = "model-Q4_K_M.gguf"
SMALL = "quants/model-Q8_0.gguf"
PLAIN = "README.md"
EMPTY = "empty.bin"


@dataclass
class ClientSite:
    """A server in front of an origin that has MODEL and SECRET."""

    origin: Process
    server: Process
    control: OriginControl
    files: dict[str, bytes]
    folder: Path


def make_files() -> dict[str, bytes]:
    """Give the files of MODEL and SECRET. No name has a percent sign: the JavaScript client does
    not encode it.
    """
    source = random.Random(11)
    return {
        LARGE: b"GGUF" + source.randbytes(24_000_000),
        SMALL: b"GGUF" + source.randbytes(300_000),
        "deep/er/grün-大きさ.bin": source.randbytes(70_000),
        "deep/er/wörter.txt": "plain, and nested: 大きさ\n".encode(),
        "odd/name with spaces.bin": source.randbytes(70_000),
        EMPTY: b"",
        "empty.txt": b"",
        PLAIN: b"# Files for clients\n",
        "config.json": b'{"xetHash": "of the file itself"}\n',
    }


def make_newer_files() -> dict[str, bytes]:
    """Give what PAST holds now."""
    return {"model-Q8_0.gguf": b"GGUF, newer: " + random.Random(12).randbytes(100_000)}


@contextmanager
def checking(client_site: ClientSite) -> Iterator[ClientSite]:
    """Begin with an empty record of requests; in the end only the server may have asked the
    origin.
    """
    client_site.control.reset_requests()
    yield client_site
    asked = client_site.control.requests()
    agents = {request["user_agent"] or "" for request in asked}
    assert [agent for agent in agents if not re.match(r"xetserve/[0-9.]+( |$)", agent)] == []
    for request in asked:
        if request["kind"] != "hub":
            assert request["user_agent"].count("/") == 1
            assert TOKEN not in (request["authorization"] or "")
    assert "Traceback" not in client_site.server.log
    assert client_site.server.popen.poll() is None, "the server has died"
