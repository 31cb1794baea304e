"""Logins through the server by the official client: in a browser, and without a token in CI."""

import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import parse_qs

from tests.conftest import Launcher
from tests.e2e.clients import Connection
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import run_script
from tests.peers import ScriptedPeer, Wire, http_answer

TOKEN = "hf_oauth_" + "n" * 30
ID_TOKEN = "eyJ" + "i" * 6_000  # as large as a JWT with many claims
JSON = "Content-Type: application/json"
SECRETS = (TOKEN, ID_TOKEN[:100], "device-code", "refresh-1", "WXYZ")


class LoginHub:
    """A Hub whose user authorizes the device at the third question."""

    def __init__(self) -> None:
        self.num_polls = 0
        self.bodies: list[bytes] = []

    async def play(self, wire: Wire) -> None:
        while (request := await wire.read_request()) is not None:
            status, value = self._answer(request.path, request.get("authorization"), request.body)
            await wire.send(http_answer(status, json.dumps(value).encode(), JSON))

    def _answer(self, path: str, token: str | None, body: bytes) -> tuple[int, object]:
        if path == "/oauth/device":
            return 200, {
                "device_code": "device-code",
                "user_code": "WXYZ",
                "verification_uri": "https://hub.test/device",
                "interval": 0,
                "expires_in": 60,
            }
        if path == "/oauth/token":
            self.bodies.append(body)
            if b"device_code" in body:
                self.num_polls += 1
                if self.num_polls == 1:
                    return 429, {"error": "too many requests"}
                if self.num_polls == 2:
                    return 400, {"error": "authorization_pending"}
            return 200, {"access_token": TOKEN, "refresh_token": "refresh-1", "expires_in": 3600}
        if path == "/api/whoami-v2" and token == f"Bearer {TOKEN}":
            auth = {"accessToken": {"displayName": "by-login", "role": "read"}}
            return 200, {"type": "user", "name": "me", "orgs": [], "auth": auth}
        return 401, {"error": "no"}


async def test_the_official_client_logs_in(launcher: Launcher, tmp_path: Path) -> None:
    login = LoginHub()
    async with ScriptedPeer(login.play) as hub:
        server = await asyncio.to_thread(
            launcher.start, *serve_arguments(hub.base, "--access-log", "json")
        )
        printed = await asyncio.to_thread(
            run_script,
            sys.executable,
            server.url,
            tmp_path / "home",
            """
            import huggingface_hub.utils._oauth_device as device
            device.time.sleep = lambda seconds: waits.append(seconds)
            waits = []
            interpreter_login()
            print(json.dumps([waits, get_token(), HfApi().whoami()["name"]]))
            """,
            token=None,
        )
        exchanged = await asyncio.to_thread(
            run_script,
            sys.executable,
            server.url,
            tmp_path / "home-of-ci",
            "print(get_token())",
            token=None,
            HF_OIDC_RESOURCE="me/model",
            HF_OIDC_ID_TOKEN=ID_TOKEN,
        )
        agents = {request.get("user-agent") or "" for request in hub.requests[1:]}
    assert json.loads(printed.splitlines()[-1]) == [[5, 5], TOKEN, "me"]
    assert "https://hub.test/device" in printed
    assert exchanged == TOKEN
    assert parse_qs(login.bodies[0].decode())["device_code"] == ["device-code"]
    assert json.loads(login.bodies[-1])["subject_token"] == ID_TOKEN
    assert all(agent.startswith("xetserve/") for agent in agents)
    assert "/oauth/token" in server.log  # the request, but nothing of it
    assert [secret for secret in SECRETS if secret in server.log] == []


async def test_what_the_hub_and_caches_get(launcher: Launcher) -> None:
    login = LoginHub()
    async with ScriptedPeer(login.play) as hub:
        server = await asyncio.to_thread(launcher.start, *serve_arguments(hub.base))

        def ask() -> None:
            connection = Connection(server.url, token=None)
            form = ("Content-Type", "application/x-www-form-urlencoded")
            basic = ("Authorization", "Basic YXBwOnNlY3JldA==")
            body = b"grant_type=authorization_code&code=c"
            reply = connection.ask("/oauth/token", [form, basic], "POST", body=body)
            assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
            too_long = connection.ask("/oauth/token", [form], "POST", body=b"x" * 65_537)
            assert too_long.status == 413
            connection.close()

        await asyncio.to_thread(ask)
        (request,) = [each for each in hub.requests if each.path == "/oauth/token"]
        assert request.get("authorization") == "Basic YXBwOnNlY3JldA=="
        assert request.get("content-type") == "application/x-www-form-urlencoded"
        assert request.body == b"grant_type=authorization_code&code=c"
