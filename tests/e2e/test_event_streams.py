"""Logs and events that the official client follows, and a stream that is quiet for longer than an
answer may take.
"""

import asyncio
import json
import sys
from pathlib import Path

from tests.conftest import Launcher
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import run_script
from tests.peers import ScriptedPeer, Wire, http_answer, http_head

QUIET = 2.5  # seconds between two events; the server's upstream_timeout is 1
EVENTS = ("Content-Type: text/event-stream", "Transfer-Encoding: chunked")


async def send_event(wire: Wire, text: str) -> None:
    data = text.encode()
    await wire.send(b"%x\r\n%b\r\n" % (len(data), data))


async def play_hub(wire: Wire) -> None:
    """Answer as the Hub does about a job and a Space."""
    while (request := await wire.read_request()) is not None:
        if request.path.endswith(("/logs", "/logs/run", "/metrics")):
            await wire.send(http_head(200, *EVENTS))
            for number in range(2):
                await asyncio.sleep(QUIET)  # as a job that says nothing
                await send_event(wire, ": keep-alive\n\n")
                event = {"data": f"line {number}", "timestamp": f"2026-01-01T00:00:0{number}Z"}
                await send_event(wire, f"data: {json.dumps(event)}\n\n")
            await wire.send(b"0\r\n\r\n")
        elif request.path == "/api/jobs/me/5":
            value = {"id": "5", "status": {"stage": "COMPLETED"}}
            await wire.send(http_answer(200, json.dumps(value).encode(), "Content-Type: text/json"))
        else:
            await wire.send(http_answer(404, b"{}", "Content-Type: application/json"))


async def test_the_official_client_follows_logs(launcher: Launcher, tmp_path: Path) -> None:
    async with ScriptedPeer(play_hub) as hub:
        server = await asyncio.to_thread(
            launcher.start, *serve_arguments(hub.base, "--upstream-timeout", "1")
        )
        printed = await asyncio.to_thread(
            run_script,
            sys.executable,
            server.url,
            tmp_path / "home",
            """
            api = HfApi()
            print(json.dumps([
                list(api.fetch_job_logs(job_id="5", namespace="me", follow=True)),
                list(api.fetch_space_logs("me/space", follow=True)),
            ]))
            """,
        )
        asked = [request for request in hub.requests if "/logs" in request.path]
        agents = {request.get("user-agent") for request in asked}
    assert json.loads(printed) == [["line 0", "line 1"]] * 2
    assert [request.path for request in asked] == [
        "/api/jobs/me/5/logs",
        "/api/spaces/me/space/logs/run",
    ]
    assert all(agent is not None and agent.startswith("xetserve/") for agent in agents)
