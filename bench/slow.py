"""Many slow clients in one process: `python -m bench.slow PLAN` with PLAN a JSON file.

Each client requests a long range and reads it at a low rate with a small receive buffer, so the
server has to hold its data. The result goes to standard output as JSON.
"""

import asyncio
import json
import resource
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

RECEIVE_BUFFER = 16 * 1024  # bytes; the kernel doubles it
TICK = 0.25  # seconds between two reads of a client


@dataclass(frozen=True, slots=True)
class SlowClients:
    """The plan. requests: (URL, first byte of the range). rate: bytes per second of each client."""

    requests: list[tuple[str, int]]
    token: str
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one client. first_byte: seconds; None: no byte arrived."""

    received: int
    first_byte: float | None
    is_cut: bool


async def run_client(url: str, start: int, plan: SlowClients) -> Outcome:
    """Download at the plan's rate until its time has passed, then close."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    head = (
        f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes={start}-\r\n"
        f"Authorization: Bearer {plan.token}\r\n\r\n"
    )
    began = time.monotonic()
    received, first_byte = 0, None
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            await loop.sock_connect(sock, (parts.hostname, parts.port))
            await loop.sock_sendall(sock, head.encode())
            while (elapsed := time.monotonic() - began) < plan.seconds:
                allowed = int(plan.rate * elapsed) - received
                if allowed <= 0:
                    await asyncio.sleep(TICK)
                    continue
                async with asyncio.timeout(plan.seconds - elapsed):
                    data = await loop.sock_recv(sock, min(allowed, RECEIVE_BUFFER))
                if not data or (received == 0 and not data.startswith(b"HTTP/1.1 206")):
                    return Outcome(received, first_byte, is_cut=True)
                if first_byte is None:
                    first_byte = time.monotonic() - began
                received += len(data)
        except TimeoutError:
            pass
        except OSError:
            return Outcome(received, first_byte, is_cut=True)
    return Outcome(received, first_byte, is_cut=False)


async def run(plan: SlowClients) -> list[Outcome]:
    """Run all clients at the same time; return their outcomes."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run_client(url, at, plan)) for url, at in plan.requests]
    return [task.result() for task in tasks]


def main() -> int:
    """Read the plan, run it, and print the outcomes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = SlowClients(**json.loads(Path(sys.argv[1]).read_text()))
    outcomes = asyncio.run(run(plan))
    json.dump([asdict(outcome) for outcome in outcomes], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
